"""Our proto file against the descriptors that tritonclient ships, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from llmos.api.inference import open_inference_pb2

# Both define the package `inference`, so one process cannot have both. A field is its number,
# type, whether it repeats, its message type and its oneof; a method its two message types and
# whether they stream.
DUMP = """
def dump(file):
    def field(f):
        kind = f.message_type or f.enum_type
        oneof = f.containing_oneof
        return [f.number, f.type, f.is_repeated, kind and kind.full_name, oneof and oneof.name]
    found = {}
    def message(m):
        found[m.full_name] = {f.name: field(f) for f in m.fields}
        for nested in m.nested_types:
            message(nested)
    for m in file.message_types_by_name.values():
        message(m)
    for service in file.services_by_name.values():
        for m in service.methods:
            found[m.full_name] = [m.input_type.full_name, m.output_type.full_name,
                                  m.client_streaming, m.server_streaming]
    return found
"""
THEIRS = f"""{DUMP}
import json, sys
from tritonclient.grpc import model_config_pb2, service_pb2
json.dump(dump(model_config_pb2.DESCRIPTOR) | dump(service_pb2.DESCRIPTOR), sys.stdout)
"""


def test_every_message_and_method_of_ours_is_theirs() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", THEIRS], capture_output=True, check=True, timeout=60
    )
    theirs = json.loads(answer.stdout)
    scope: dict[str, Any] = {}
    exec(DUMP, scope)
    ours = json.loads(json.dumps(scope["dump"](open_inference_pb2.DESCRIPTOR)))
    methods = [name for name, what in ours.items() if isinstance(what, list)]
    assert len(methods) == 17 and len(ours) > 30
    for name, what in ours.items():
        if isinstance(what, list):
            assert theirs[name] == what, name
        else:  # fields that mean nothing here are left out; nothing is added
            assert {field: theirs[name].get(field) for field in what} == what, name
