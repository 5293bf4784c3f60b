// Numbers for people, as llmos-ctl writes them.
export function bytes(count: number): string {
  if (count < 1024) return `${count} B`;
  let amount = count;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    amount /= 1024;
    if (amount < 1024) return `${amount.toFixed(1)} ${unit}`;
  }
  return `${(amount / 1024).toFixed(1)} TiB`;
}

export function duration(seconds: number): string {
  if (seconds < 10) return `${seconds.toFixed(1)}s`;
  if (seconds < 60) return `${Math.round(seconds)}s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes}m${String(Math.floor(seconds % 60)).padStart(2, "0")}s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours}h${String(minutes % 60).padStart(2, "0")}m`;
  return `${Math.floor(hours / 24)}d${String(hours % 24).padStart(2, "0")}h`;
}

export function rate(perSecond: number): string {
  return perSecond >= 100 ? perSecond.toFixed(0) : perSecond.toFixed(1);
}

export function clock(unixSeconds: number): string {
  return unixSeconds ? new Date(unixSeconds * 1000).toLocaleTimeString() : "";
}

export function moment(unixSeconds: number): string {
  return unixSeconds ? new Date(unixSeconds * 1000).toLocaleString() : "";
}

/** A number of parameters. */
export function count(parameters: number): string {
  const millions = parameters / 1e6;
  if (parameters < 100_000) return String(parameters);
  return `${millions >= 10 ? millions.toFixed(0) : Number(millions.toPrecision(2))} M`;
}

export function percent(share: number): string {
  return `${Math.round(share * 100)}%`;
}

/** The last word of a dotted name, e.g. of a service. */
export function short(name: string): string {
  return name.slice(name.lastIndexOf(".") + 1);
}
