// A kernel's end of the port protocol, just enough to test the JavaScript end without a kernel: it
// acknowledges exports and carries calls from any port to the one that exported the service.
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';

import grpc from '@grpc/grpc-js';

import { Protos } from '../src/protos.js';
import { Kind } from '../src/wire.js';

const PORT = new Protos(['llmos/api/kernel/v1/port.proto']).service('llmos.api.kernel.v1.Port');
const WINDOW = 1 << 20;

export class Peer {
  constructor() {
    this.folder = mkdtempSync(path.join(os.tmpdir(), 'llmos-peer-'));
    this.address = `unix:${path.join(this.folder, 'kernel.sock')}`;
    this.window = WINDOW;
    this.seen = []; // every envelope that came, with the name of its port
    this.frames = 0;
  }

  async start() {
    this.ports = new Map(); // stream -> { name, nextId, routes: id -> [stream, id] }
    this.exporters = new Map(); // service -> stream
    this.server = new grpc.Server({ 'grpc.max_receive_message_length': 1 << 20 });
    this.server.addService(PORT.methods, { Attach: (stream) => this.attach(stream) });
    const credentials = grpc.ServerCredentials.createInsecure();
    await new Promise((resolve, reject) =>
      this.server.bindAsync(this.address, credentials, (error) => (error ? reject(error) : resolve())),
    );
  }

  /** Die as by kill -9: all streams break. */
  crash() {
    this.server.forceShutdown();
  }

  close() {
    this.crash();
    rmSync(this.folder, { recursive: true, force: true });
  }

  attach(stream) {
    const port = { name: '', nextId: 2, routes: new Map() };
    this.ports.set(stream, port);
    stream.on('data', ({ envelopes }) => {
      this.frames += 1;
      for (const envelope of envelopes) this.dispatch(stream, port, envelope);
    });
    stream.on('end', () => stream.end());
    stream.on('error', () => {}); // of a stream that crash() broke
    stream.on('close', () => this.ports.delete(stream));
  }

  dispatch(stream, port, envelope) {
    const kind = Kind[envelope.kind.replace('KIND_', '')];
    const call = Number(envelope.call);
    this.seen.push({ ...envelope, kind, call, port: port.name });
    const answer = (fields) => stream.write({ envelopes: [fields] });
    if (kind === Kind.HELLO) {
      port.name = envelope.hello.name;
      const welcome = { port: 1, kernel: 'peer', host: 'here', initial_window: this.window };
      answer({ kind: Kind.WELCOME, welcome: { ...welcome, max_frame_bytes: 1 << 20 } });
    } else if (kind === Kind.EXPORT) {
      this.exporters.set(envelope.export.service, stream);
      answer({ kind: Kind.EXPORTED, call });
    } else if (kind === Kind.DRAIN) {
      answer({ kind: Kind.DRAIN });
    } else if (kind === Kind.OPEN) {
      this.open(stream, port, call, envelope);
    } else if (port.routes.has(call)) {
      const [to, id] = port.routes.get(call);
      to.write({ envelopes: [{ ...envelope, call: id }] });
    }
  }

  open(stream, port, call, envelope, patience = 30) {
    const service = envelope.open.method.split('/')[1];
    const to = this.exporters.get(service);
    if (!this.ports.has(to) && patience > 0) {
      // Ports come back in any order after a crash: as in the kernel, calls wait a while.
      setTimeout(() => this.open(stream, port, call, envelope, patience - 1), 20);
      return;
    }
    if (!this.ports.has(to)) {
      const status = { code: 12, message: `nobody serves ${service}` };
      stream.write({ envelopes: [{ call, kind: Kind.END, status }] });
      return;
    }
    const other = this.ports.get(to);
    const id = other.nextId;
    other.nextId += 2;
    port.routes.set(call, [to, id]);
    other.routes.set(id, [stream, call]);
    to.write({ envelopes: [{ ...envelope, call: id }] });
  }
}
