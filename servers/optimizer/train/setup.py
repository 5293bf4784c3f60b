"""From a spec to what is trained: the network, its objective, and how the result is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from llmos.api.optimizer.v1 import train_pb2 as pb
from llmos.lib.errors import InvalidArgument
from llmos.servers.optimizer.train import networks, objectives
from llmos.servers.optimizer.train.examples import Examples, Preparation, Splits

_VOCABULARY = 8192
_TRANSFORMERS = ("encoder", "decoder", "encoder_decoder")
_FORMS = {"encoder": "texts", "decoder": "stream", "encoder_decoder": "pairs", "cnn": "images"}


@dataclass(frozen=True)
class Setup:
    """What a Loop needs, and what becomes of it."""

    network: nn.Module
    objective: objectives.Objective
    rate: float  # the default learning rate
    write: Callable[[Path], None]  # puts a folder of files per result under the given one


@dataclass(frozen=True)
class Workshop:
    """One job's folder: models under source/ and student/, examples/, tokenizer/."""

    kind: str  # of JobSpec
    spec: Any
    work: Path
    sources: list[str]  # `name@version`, in the order of the kind's Needs

    @property
    def source(self) -> Path:
        """Return the folder of the first model."""
        return self.work / "source"

    def prepare(self, splits: Splits) -> Examples:
        """Write the examples, and the tokenizer's files. Raises InvalidArgument BAD_SPEC."""
        done = self.work / "examples"
        make = Preparation(f"{self.kind}.data", self.spec.data, splits, done)
        if self.kind != "train":
            tokenizer = self._tokenizer(make)
            if tokenizer is None:
                return make.run(form="numbers", classify=self._config()["outputs"] > 1)
            target = self.spec.data.target or splits.label_column
            if target:
                return make.run(form="texts", classify=True, tokenizer=tokenizer)
            return make.run(form="stream", classify=False, tokenizer=tokenizer, eos=self._eos())
        network = self.spec.WhichOneof("network")
        form = _FORMS.get(network, "numbers")
        return make.run(
            form=form,
            classify=network in ("logistic", "cnn", "encoder")
            or (network == "mlp" and not self.spec.mlp.regress),
            tokenizer=self._tokenizer(make) if network in _TRANSFORMERS else None,
            eos=1 if form == "stream" and not self.spec.data.tokenizer else self._eos(),
        )

    def setup(self, examples: Examples) -> Setup:
        """Build what is trained; the same for the same seed."""
        torch.manual_seed(self.spec.training.seed)
        if self.kind == "train":
            return self._fresh(examples)
        if self.kind == "distil":
            return self._distil(examples)
        return self._fine_tune(examples)

    def _tokenizer(self, make: Preparation) -> Tokenizer | None:
        """Return the tokenizer; None for a network of numbers."""
        from llmos.servers.optimizer.train import pretrained

        out, data = self.work / "tokenizer", self.spec.data
        if self.kind != "train" and self._config().get("model_type") == networks.MODEL_TYPE:
            return None
        if self.kind != "train" or data.tokenizer:
            return pretrained.tokenizer_of(self.source, out)
        if (out / "tokenizer.json").exists():
            found: Tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
            return found
        return pretrained.train_tokenizer(make.texts(), data.vocabulary or _VOCABULARY, out)

    def _config(self) -> dict[str, Any]:
        path = self.source / "config.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def _eos(self) -> int:
        """Return the id that ends a text: the model's own."""
        config = self.work / "tokenizer" / "tokenizer_config.json"
        token = json.loads(config.read_text()).get("eos_token") if config.exists() else None
        token = token.get("content") if isinstance(token, dict) else token
        path = self.work / "tokenizer" / "tokenizer.json"
        if not token or not path.exists():
            return -1
        found = Tokenizer.from_file(str(path)).token_to_id(token)
        return -1 if found is None else int(found)

    def _fresh(self, examples: Examples) -> Setup:
        spec, about = self.spec, examples.about
        name = spec.WhichOneof("network")
        if name in _TRANSFORMERS:
            from llmos.servers.optimizer.train import pretrained

            tokenizer = Tokenizer.from_file(str(self.work / "tokenizer" / "tokenizer.json"))
            tokens = spec.data.tokens or 256
            model = pretrained.fresh(
                name,
                getattr(spec, name),
                tokenizer.get_vocab_size(with_added_tokens=True),
                tokens,
                len(about.classes),
            )
            if about.classes:
                model.config.id2label = dict(enumerate(about.classes))
                model.config.label2id = {c: i for i, c in enumerate(about.classes)}
            kinds: dict[str, type[objectives.Objective]] = {
                "encoder": objectives.TextClasses,
                "decoder": objectives.NextToken,
                "encoder_decoder": objectives.Answer,
            }
            return Setup(model, kinds[name](), 1e-3, lambda out: self._write(model, out / "train"))
        config: dict[str, Any] = {
            "model_type": networks.MODEL_TYPE,
            "network": name,
            "input_shape": about.shape,
            "outputs": len(about.classes) or 1,
            "features": about.features,
            "target": about.target,
            "id2label": dict(enumerate(about.classes)),
        }
        if name == "mlp":
            config.update(hidden_sizes=list(spec.mlp.hidden) or [64], dropout=spec.mlp.dropout)
        if name == "cnn":
            if len(about.shape) not in (2, 3):
                raise InvalidArgument(
                    "BAD_SPEC",
                    f"train.data.features {about.features} are no images; cnn needs a column of "
                    "arrays (height, width) or (height, width, channels).",
                )
            channels = list(spec.cnn.channels) or [16, 32]
            if min(about.shape[:2]) >> len(channels) < 1:
                raise InvalidArgument(
                    "BAD_SPEC", f"train.cnn.channels has too many blocks for {about.shape} images."
                )
            config.update(
                channels=channels, hidden=spec.cnn.hidden or 128, dropout=spec.cnn.dropout
            )
        return self._plain(config, networks.build(config), "train", self._rate())

    def _rate(self) -> float:
        return 1e-2 if self.spec.training.method == pb.METHOD_SGD else 1e-3

    def _plain(
        self, config: Mapping[str, Any], network: nn.Module, step: str, rate: float
    ) -> Setup:
        def write(out: Path) -> None:
            folder = out / step
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {n: t.detach().cpu().contiguous() for n, t in network.state_dict().items()}
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config, indent=2))

        classes = config["outputs"] > 1
        objective = objectives.Classes() if classes else objectives.Regression()
        return Setup(network, objective, rate, write)

    def _fine_tune(self, examples: Examples) -> Setup:
        spec, about = self.spec, examples.about
        config = self._config()
        if config.get("model_type") == networks.MODEL_TYPE:
            if spec.HasField("lora"):
                raise InvalidArgument("BAD_SPEC", "fine_tune.lora is for Transformers.")
            if list(config["input_shape"]) != list(about.shape):
                raise InvalidArgument(
                    "BAD_SPEC",
                    f"fine_tune.data.features give rows of {about.shape}; the model takes "
                    f"{config['input_shape']}.",
                )
            known = list(config["id2label"].values())
            if about.classes and about.classes != known:
                raise InvalidArgument(
                    "BAD_SPEC",
                    f"fine_tune.data.target has the classes {about.classes[:9]}; the model's are "
                    f"{known[:9]}.",
                )
            network = networks.build(config)
            network.load_state_dict(load_file(self.source / "model.safetensors"))
            return self._plain(config, network, "fine-tune", self._rate() / 10)
        from llmos.servers.optimizer.train import lora, pretrained

        model = pretrained.load(self.source, about.classes)
        objective = objectives.TextClasses() if about.classes else objectives.NextToken()
        if not spec.HasField("lora"):
            return Setup(model, objective, 5e-5, lambda out: self._write(model, out / "fine-tune"))
        targets = lora.add(model, spec.lora)

        def write(out: Path) -> None:
            lora.save(model, spec.lora, targets, self.sources[0], out / "lora")
            if spec.lora.merge:
                lora.merge(model)
                self._write(model, out / "lora-merge")

        return Setup(model, objective, 5e-4, write)

    def _distil(self, examples: Examples) -> Setup:
        from llmos.servers.optimizer.train import pretrained

        spec, classes = self.spec, examples.about.classes
        if self._config().get("model_type") == networks.MODEL_TYPE:
            raise InvalidArgument("BAD_SPEC", "distil.teacher must be a Transformer.")
        teacher = pretrained.load(self.source, classes)
        student = pretrained.load(self.work / "student" if spec.student else self.source, classes)
        if not spec.student:
            pretrained.cut(student, spec.layers)
        wide, narrow = teacher.config.hidden_size, student.config.hidden_size
        if teacher.config.vocab_size != student.config.vocab_size:
            raise InvalidArgument(
                "BAD_SPEC", "distil.student has another vocabulary than the teacher."
            )
        if spec.hidden_weight and wide != narrow:
            raise InvalidArgument(
                "BAD_SPEC",
                f"distil.hidden_weight needs hidden states of one size; they are {wide} and "
                f"{narrow}.",
            )
        base = objectives.TextClasses() if classes else objectives.NextToken()
        objective = objectives.Distillation(
            base,
            teacher,
            spec.temperature or 2.0,
            spec.soft_weight or 0.9,
            spec.hidden_weight,
        )
        return Setup(student, objective, 5e-4, lambda out: self._write(student, out / "distil"))

    def _write(self, model: Any, folder: Path) -> None:
        """Write a Transformer with its tokenizer's files."""
        from llmos.servers.optimizer.train import pretrained

        pretrained.save(model, folder)
        for path in (self.work / "tokenizer").iterdir():
            shutil.copy(path, folder / path.name)
