// What stands in place of a page that could not be drawn, so that the rest of the console stays.
import { Component, type ComponentChildren, type JSX } from "preact";
import { t } from "../lib/i18n";

type Props = { children: ComponentChildren; place: string };
type State = { said: string | null };

export class Boundary extends Component<Props, State> {
  override state: State = { said: null };

  static getDerivedStateFromError(cause: unknown): State {
    console.error(cause);
    return { said: cause instanceof Error ? cause.message : String(cause) };
  }

  override componentDidUpdate(before: Props): void {
    if (before.place !== this.props.place && this.state.said !== null) this.setState({ said: null });
  }

  override render(): JSX.Element {
    if (this.state.said === null) return <>{this.props.children}</>;
    return (
      <section class="panel">
        <p class="trouble" role="alert">
          {t("notDrawn", { cause: this.state.said })}
        </p>
        <button onClick={() => this.setState({ said: null })}>{t("tryAgain")}</button>
      </section>
    );
  }
}
