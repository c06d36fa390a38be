"""Types that transformers does not have: what is written carries the code that computes it.

::

    baichuan/model.py ── copied ──▶ DIR/modeling_baichuan_for_transformers_5.py ◀── "auto_map" in DIR/config.json

`AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True)` then opens it where this package is not installed.
That is how verification opens it too, in its fresh process, which imports none of these modules: code that lies in a
folder runs there only where it is this package's own, to the byte.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortgpt.basics.inputs import Config
from shortgpt.models.configs.text import updated
from shortgpt_adapters.transformers import loader
from shortgpt_adapters.transformers.loader import ReloadedCausalLM


@dataclass(frozen=True)
class Code:
    """A module of this package that needs nothing else of it.

    Attributes:
        module: its name here.
        file: its name in a model's folder.
        classes: the Auto class → the class of that module.
    """

    module: str
    file: str
    classes: Mapping[str, str]

    @property
    def path(self) -> Path:
        return Path(__file__).parent.joinpath(*self.module.split(".")).with_suffix(".py")

    @property
    def auto_map(self) -> dict[str, str]:
        """What a config.json says so that transformers finds the classes."""
        return {auto: f"{Path(self.file).stem}.{name}" for auto, name in self.classes.items()}

    def is_in(self, folder: Path) -> bool:
        """Whether opening a model there with `trust_remote_code=True` runs this code and no other."""
        file, config = folder / self.file, json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("auto_map")
        return (
            isinstance(named, dict)
            and all(named.get(auto) == name for auto, name in self.auto_map.items())
            and file.is_file()
            and file.read_bytes() == self.path.read_bytes()
            and not (folder / "custom_generate").exists()  # transformers runs what lies there
        )

    def carry(self, folder: Path) -> None:
        """Put it into a model's folder, and have the config name it."""
        shutil.copyfile(self.path, folder / self.file)
        config = folder / "config.json"
        text = config.read_text(encoding="utf-8")
        written = json.loads(text)
        written["auto_map"] = {**(written.get("auto_map") or {}), **self.auto_map}
        config.write_text(updated(text, written), encoding="utf-8")

    def note(self, config: Config) -> str:
        """What a user of a checkpoint that carries it should know; `config` is the source's."""
        note = f"`{self.file}` computes it, and is opened with `trust_remote_code=True`"
        others = {name.split(".")[0] for name in _named(config.get("auto_map"))} - {Path(self.file).stem}
        if others:
            files = ", ".join(f"`{name}.py`" for name in sorted(others))
            note += f"; `auto_map` in `config.json` names it in place of the source's own {files}, which lies beside"
        return f"{note}."


POST_NORM_GPT2 = Code(
    "families.gpt2_postnorm_model",
    "modeling_gpt2_postnorm.py",
    {
        "AutoConfig": "PostNormGPT2Config",
        "AutoModel": "PostNormGPT2Model",
        "AutoModelForCausalLM": "PostNormGPT2LMHeadModel",
    },
)
BAICHUAN = Code(
    "baichuan.model",
    "modeling_baichuan_for_transformers_5.py",  # the folders of the original have a modeling_baichuan.py
    {"AutoConfig": "BaichuanConfig", "AutoModel": "BaichuanModel", "AutoModelForCausalLM": "BaichuanForCausalLM"},
)
ALL = (POST_NORM_GPT2, BAICHUAN)


def _named(auto_map: Any) -> list[str]:
    """The names in an `auto_map`: one for each class, or two, one of them perhaps null."""
    entries = auto_map.values() if isinstance(auto_map, dict) else ()
    names = [name for item in entries for name in (item if isinstance(item, list) else [item])]
    return [name for name in names if isinstance(name, str)]


def reload(directory: Path, *, trust_remote_code: bool = False, **opening: Any) -> ReloadedCausalLM:
    """Open a checkpoint with the code that it carries, if that is this package's; or else with this package's modules.

    Raises as `loader.reload` does.
    """
    carried = any(code.is_in(directory) for code in ALL)
    if not carried:
        for code in ALL:
            importlib.import_module(f"shortgpt_adapters.{code.module}")  # registers the classes with transformers
    return loader.reload(directory, trust_remote_code=trust_remote_code or carried, **opening)
