// Words of the port protocol (llmos/api/kernel/v1/port.proto): kinds, flags, pieces and metadata.
export const Kind = Object.freeze({
  DATA: 1, OPEN: 2, END: 3, CANCEL: 4, WINDOW: 5, HEADERS: 6, HELLO: 7, WELCOME: 8,
  EXPORT: 9, EXPORTED: 10, CREDIT: 11, DRAIN: 12, ALIVE: 13,
});
export const Flag = Object.freeze({ MESSAGE: 1, MORE: 2, HALF_CLOSE: 4 });

export const PIECE = 256 * 1024; // most payload bytes in one envelope
export const MAX_MESSAGE = 64 * 1024 * 1024;
export const EMPTY = Buffer.alloc(0);

/** Cut a message into [piece, more] pairs; an empty message is one empty piece. */
export function* pieces(message, size = PIECE) {
  let at = 0;
  do {
    const end = Math.min(at + size, message.length);
    yield [message.subarray(at, end), end < message.length];
    at = end;
  } while (at < message.length);
}

/** [key, value] pairs, or an object, as wire metadata. */
export function toMetadata(metadata = {}) {
  const entries = Array.isArray(metadata) ? metadata : Object.entries(metadata);
  return entries.map(([key, value]) => ({ key: key.toLowerCase(), value: Buffer.from(value) }));
}

/** Wire metadata as [key, value] pairs: Buffers under keys that end in `-bin`, else text. */
export function fromMetadata(metadata = []) {
  return metadata.map(({ key, value }) => {
    const bytes = Buffer.from(value ?? EMPTY);
    return [key, key.endsWith('-bin') ? bytes : bytes.toString()];
  });
}
