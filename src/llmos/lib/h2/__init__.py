"""gRPC over HTTP/2 for IPC: both ends, callbacks on the event loop, one copy per message.

grpc.aio hands every read and write of every stream through a completion queue, a polling thread
and two wake-ups, which is most of what a short call costs. A kernel does little else than read
and write, so it, and the ports of this library, have an endpoint of their own. It speaks plain
gRPC: any gRPC library may be at the other end, and is, in the tests.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK, by the `hpack` package), and "gRPC over HTTP2"
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""
