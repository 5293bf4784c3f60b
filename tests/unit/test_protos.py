"""The contracts keep buf's STANDARD and COMMENTS rules, and say which methods may be repeated.

The rules are checked on the descriptors with source info, so no buf is needed here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2 as pb

PROTO = Path(__file__).parents[2] / "proto"
STREAMS_FRAMES = "llmos.api.kernel.v1.Port.Attach"  # both ways carry the same Frame, on purpose


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[pb.FileDescriptorProto]:
    out = tmp_path_factory.mktemp("protos") / "set.bin"
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={out}", *sources], check=True)
    found = list(pb.FileDescriptorSet.FromString(out.read_bytes()).file)
    assert len(found) == len(sources) > 0
    return found


def ours(files: list[pb.FileDescriptorProto]) -> list[pb.FileDescriptorProto]:
    """Leave out what others specified (the Open Inference Protocol): its names are not ours."""
    return [f for f in files if f.package.startswith("llmos.")]


def messages(
    scope: pb.FileDescriptorProto | pb.DescriptorProto, name: str, path: tuple[int, ...] = ()
) -> Iterator[tuple[str, tuple[int, ...], pb.DescriptorProto]]:
    """Yield (full name, source path, message), nested ones too, without map entries."""
    nested = scope.message_type if isinstance(scope, pb.FileDescriptorProto) else scope.nested_type
    number = 4 if isinstance(scope, pb.FileDescriptorProto) else 3
    for i, message in enumerate(nested):
        if not message.options.map_entry:
            here = (*path, number, i)
            yield f"{name}.{message.name}", here, message
            yield from messages(message, f"{name}.{message.name}", here)


def enums(
    file: pb.FileDescriptorProto,
) -> Iterator[tuple[str, tuple[int, ...], pb.EnumDescriptorProto]]:
    for i, enum in enumerate(file.enum_type):
        yield f"{file.package}.{enum.name}", (5, i), enum
    for name, path, message in messages(file, file.package):
        for i, enum in enumerate(message.enum_type):
            yield f"{name}.{enum.name}", (*path, 4, i), enum


def methods(
    file: pb.FileDescriptorProto,
) -> Iterator[tuple[str, tuple[int, ...], pb.MethodDescriptorProto]]:
    for i, service in enumerate(file.service):
        for j, method in enumerate(service.method):
            yield f"{file.package}.{service.name}.{method.name}", (6, i, 2, j), method


def elements(file: pb.FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (name, source path) of everything that needs a comment."""
    for i, service in enumerate(file.service):
        yield f"{file.package}.{service.name}", (6, i)
    for name, path, _ in methods(file):
        yield name, path
    for name, path, message in messages(file, file.package):
        yield name, path
        yield from ((f"{name}.{f.name}", (*path, 2, i)) for i, f in enumerate(message.field))
        yield from (
            (f"{name}.{o.name}", (*path, 8, i))
            for i, o in enumerate(message.oneof_decl)
            if not o.name.startswith("_")  # made by `optional`
        )
    for name, path, enum in enums(file):
        yield name, path
        yield from ((f"{name}.{v.name}", (*path, 2, i)) for i, v in enumerate(enum.value))
    for i, extension in enumerate(file.extension):
        yield f"{file.package}.{extension.name}", (7, i)


def test_everything_has_a_comment(files: list[pb.FileDescriptorProto]) -> None:
    missing = []
    for file in files:
        commented = {
            tuple(place.path)
            for place in file.source_code_info.location
            if place.leading_comments.strip()
        }
        missing += [name for name, path in elements(file) if path not in commented]
    assert missing == []


def test_a_file_is_where_its_package_says(files: list[pb.FileDescriptorProto]) -> None:
    wrong = [
        file.name
        for file in ours(files)
        if Path(file.name).parent.as_posix() != file.package.replace(".", "/")
        or not re.fullmatch(r"llmos\.api\.[a-z]+\.v\d+", file.package)
        or not re.fullmatch(r"[a-z0-9_]+\.proto", Path(file.name).name)
        or file.syntax != "proto3"
    ]
    assert wrong == []
    assert {f.package for f in files} - {f.package for f in ours(files)} <= {"inference"}


def test_enum_values_are_prefixed_and_start_unspecified(
    files: list[pb.FileDescriptorProto],
) -> None:
    wrong = []
    for file in ours(files):
        for name, _, enum in enums(file):
            prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
            if enum.value[0].name != f"{prefix}_UNSPECIFIED" or enum.value[0].number != 0:
                wrong.append(f"{name}.{enum.value[0].name}")
            wrong += [f"{name}.{v.name}" for v in enum.value if not v.name.startswith(f"{prefix}_")]
    assert wrong == []


def test_each_method_has_its_own_request_and_response(
    files: list[pb.FileDescriptorProto],
) -> None:
    wrong, used = [], list[str]()
    for file in ours(files):
        for name, _, method in methods(file):
            if name == STREAMS_FRAMES:
                continue
            wanted = (f".{file.package}.{method.name}{end}" for end in ("Request", "Response"))
            if (method.input_type, method.output_type) != tuple(wanted):
                wrong.append(name)
            used += [method.input_type, method.output_type]
    assert wrong == []
    assert sorted(used) == sorted(set(used))


def test_each_method_says_if_it_may_be_repeated(files: list[pb.FileDescriptorProto]) -> None:
    silent = [
        name
        for file in files
        for name, _, method in methods(file)
        if not method.options.HasField("idempotency_level")
    ]
    assert silent == []


def test_names(files: list[pb.FileDescriptorProto]) -> None:
    upper, lower = re.compile(r"[A-Z][A-Za-z0-9]*"), re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
    wrong = []
    for file in ours(files):
        wrong += [name for name, _, m in methods(file) if not upper.fullmatch(m.name)]
        wrong += [s.name for s in file.service if not upper.fullmatch(s.name)]
        for name, _, message in messages(file, file.package):
            wrong += [name] if not upper.fullmatch(message.name) else []
            wrong += [f"{name}.{f.name}" for f in message.field if not lower.fullmatch(f.name)]
            wrong += [
                f"{name}.{o.name}"
                for o in message.oneof_decl
                if o.name[0] != "_" and not lower.fullmatch(o.name)
            ]
    assert wrong == []
