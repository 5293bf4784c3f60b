// Where this process runs, and where its LLM OS lives.
import { createHash } from 'node:crypto';
import { readFileSync, readlinkSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

const SUN_PATH = 100; // a socket's path is limited to 108 bytes; see run_dir in llmos/lib/config.py

/** What two processes share when one can map the other's shared memory (Hello.host). */
export function hostId() {
  try {
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();
    return `${os.hostname()}/${boot}/${readlinkSync('/proc/self/ns/mnt')}`;
  } catch (error) {
    if (error.code === undefined) throw error;
    return `${os.hostname()}//`; // not Linux
  }
}

/** The kernel's address: $LLMOS_ADDRESS, else its Unix socket in the state directory. */
export function defaultAddress(env = process.env) {
  if (env.LLMOS_ADDRESS) return env.LLMOS_ADDRESS;
  const base = env.XDG_STATE_HOME || path.join(os.homedir(), '.local/state');
  const state = path.resolve(env.LLMOS_STATE_DIR || path.join(base, 'llmos'));
  let run = path.join(state, 'run');
  if (Buffer.byteLength(run) + 24 > SUN_PATH) {
    const digest = createHash('sha256').update(state).digest('hex').slice(0, 12);
    run = path.join(os.tmpdir(), `llmos-${process.getuid()}-${digest}`);
  }
  return `unix:${path.join(run, 'kernel.sock')}`;
}
