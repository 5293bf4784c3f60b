// Loads the plain proto files and finds services in them. Nothing is generated.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

import * as loader from '@grpc/proto-loader';
import protobuf from 'protobufjs';

import { fileDescriptors } from './descriptors.js';

const HERE = path.dirname(fileURLToPath(import.meta.url));
const OPTIONS = { keepCase: true, longs: String, enums: String, defaults: true, oneofs: true };

/**
 * Folders that proto files are looked for in: $LLMOS_PROTO, the checkout's, this package's own
 * (where the folder `llmos` of the checkout's `proto` may be copied when the package stands alone).
 */
export function protoDirs(env = process.env) {
  const own = [path.resolve(HERE, '../../../proto'), path.resolve(HERE, '../proto')];
  return [...(env.LLMOS_PROTO ? [path.resolve(env.LLMOS_PROTO)] : []), ...own].filter(existsSync);
}

function find(file, dirs) {
  const found = dirs.map((dir) => path.join(dir, file)).find(existsSync);
  if (!found) {
    throw new Error(
      `${file} is in none of ${dirs.join(', ') || 'the proto folders'}: ` +
        'set LLMOS_PROTO to the proto folder of an LLM OS checkout.',
    );
  }
  return found;
}

/** Proto files and what they import, loaded. */
export class Protos {
  /**
   * @param {string[]} files paths within the proto folders, e.g. llmos/api/storage/v1/registry.proto
   * @param {{dirs?: string[]}} [options]
   */
  constructor(files, { dirs = protoDirs() } = {}) {
    for (const file of files) find(file, dirs);
    this.definition = loader.loadSync(files, { ...OPTIONS, includeDirs: dirs });
    this.root = new protobuf.Root();
    this.names = new Map(); // absolute path -> name within the proto folder
    this.root.resolvePath = (_origin, target) => {
      if (path.isAbsolute(target)) return target;
      const found = find(target, dirs);
      this.names.set(found, target);
      return found;
    };
    this.root.loadSync(files, { keepCase: true });
    this.root.resolveAll();
  }

  /**
   * @param {string} name full name, e.g. llmos.api.storage.v1.Registry
   * @returns {{name: string, methods: Object, files: () => Buffer[]}} its methods by bare name, as
   *   @grpc/proto-loader gives them, and its serialized descriptors, dependencies first
   */
  service(name) {
    const methods = this.definition[name];
    if (!methods || 'format' in methods) throw new Error(`No service ${name} in the proto files.`);
    return { name, methods, files: () => fileDescriptors(this.root, name, this.names) };
  }

  /** The protobufjs type of a message, for encoding and decoding without conversion. */
  type(name) {
    return this.root.lookupType(name);
  }
}
