"""Writes a GGUF model with its matrices as Q8_0: what the peers that read GGUF are measured on."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants


def as_q8_0(source: Path, target: Path) -> Path:
    """Write `source` to `target`, matrices as Q8_0 and vectors as they are; returns `target`."""
    reader = GGUFReader(source)
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        value = 7 if key == "general.file_type" else field.contents()  # 7: mostly Q8_0
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, value, kind, sub_type=inner)
    for tensor in reader.tensors:
        if tensor.tensor_type in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            writer.add_tensor(tensor.name, tensor.data)
            continue
        plain = quants.dequantize(tensor.data, tensor.tensor_type)
        data = quants.quantize(plain, GGMLQuantizationType.Q8_0)
        writer.add_tensor(tensor.name, data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
