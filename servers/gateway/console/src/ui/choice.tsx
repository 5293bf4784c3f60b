// Which model to use, and what to say where there is none.
import type { JSX } from "preact";

/** That there is no model for this, and how to get one. */
export function Missing(props: { said: string; commands: string[] }): JSX.Element {
  return (
    <section class="panel">
      <p>{props.said}</p>
      {props.commands.map((command) => (
        <p key={command}>
          <code>{command}</code>
        </p>
      ))}
    </section>
  );
}

export function ModelChoice(props: {
  label: string;
  models: string[];
  value: string;
  none?: string;
  choose: (ref: string) => void;
}): JSX.Element {
  return (
    <label>
      {props.label}
      <select value={props.value} onChange={(event) => props.choose(event.currentTarget.value)}>
        {props.none !== undefined && <option value="">{props.none}</option>}
        {props.models.map((ref) => (
          <option key={ref} value={ref}>
            {ref}
          </option>
        ))}
      </select>
    </label>
  );
}
