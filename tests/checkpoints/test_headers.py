"""A checkpoint is untrusted input: files made by hand, byte by byte. safetensors' own reader says which are sound."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from shortgpt.basics.inputs import MAX_HEADER
from shortgpt.checkpoints.headers import BITS, read_header, write_header
from shortgpt.errors import CheckpointError
from tests.support import removal_refused, saved, tiny

A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def made(file: Path, header: Any, data: int = 8, length: int | None = None) -> Path:
    """A file of that header, an object or the bytes themselves, and so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return file


def accepted_by_the_library(file: Path) -> dict[str, tuple[int, ...]] | None:
    """Name → shape, as safetensors reads it; None where it refuses."""
    try:
        with safe_open(file, framework="pt") as reader:
            return {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
    except SafetensorError:
        return None


# -- what is wrong --------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Any, int, str]] = {
    "no object": (b"[1, 2]  ", 8, r"no safetensors header \(no JSON object"),
    "no JSON": (b'{"a": ]  ', 8, r"no safetensors header \(Expecting value"),
    "UTF-16": ("\ufeff{}".encode("utf-16"), 0, "no safetensors header"),
    "no UTF-8": (b'{"\xff": 1}', 8, r"no safetensors header \(not UTF-8"),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 8, r"no safetensors header \(nested too deeply"),
    "half a character": (rb'{"\ud800": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "half a character"),
    "a number of many digits": (b'{"a": ' + b"9" * 10_000 + b"}", 8, "no safetensors header"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "__metadata__ are not text"),
    "metadata of half a character": (rb'{"__metadata__": {"a": "\udfff"}}', 0, "half a character"),
    "metadata that are a list": ({"__metadata__": ["a"]}, 0, "__metadata__ are not text"),
    "no fields": ({"a": {}}, 8, "tensor 'a' has no dtype, shape and data_offsets"),
    "a tensor that is a number": ({"a": 3}, 8, "tensor 'a' has no dtype, shape and data_offsets"),
    "three offsets": ({"a": A | {"data_offsets": [0, 4, 8]}}, 8, "tensor 'a' has no dtype, shape and data_offsets"),
    "an unknown dtype": ({"a": A | {"dtype": "F33"}}, 8, "tensor 'a' has the dtype 'F33'; supported are F4, "),
    "a dtype that is no text": ({"a": A | {"dtype": ["F32"]}}, 8, "tensor 'a' has the dtype"),
    "a negative offset": ({"a": A | {"data_offsets": [-8, 0]}}, 8, "tensor 'a' are not all numbers of 0 or more"),
    "an offset that is a fraction": ({"a": A | {"data_offsets": [0, 8.0]}}, 8, "'a' are not all numbers of 0 or more"),
    "a shape of truths": ({"a": A | {"shape": [True, 2]}}, 8, "'a' are not all numbers of 0 or more"),
    "a negative extent": ({"a": A | {"shape": [-1, -2]}}, 8, "'a' are not all numbers of 0 or more"),
    "an extent past 64 bits": ({"a": A | {"shape": [2**64, 0]}}, 8, "'a' are not all numbers of 0 or more"),
    "offsets in reverse": ({"a": A | {"data_offsets": [8, 0]}}, 8, "tensor 'a' has -8 bytes"),
    "fewer bytes than the shape": ({"a": A | {"shape": [3]}}, 8, r"tensor 'a' has 8 bytes, .* no F32 of shape \[3\]"),
    "more bytes than the shape": ({"a": A | {"shape": []}}, 8, r"tensor 'a' has 8 bytes, .* no F32 of shape \[\]"),
    "a shape that overflows": ({"a": A | {"shape": [2**62, 2**62, 2**10]}}, 8, "tensor 'a' has 8 bytes"),
    "a shape without end": ({"a": A | {"shape": [2**62] * 100_000}}, 8, r"tensor 'a' has 8 bytes, .*, \.\.\.\];"),
    "two tensors in one place": ({"a": A, "b": A}, 8, "tensor 'b' shares bytes with the one before it"),
    "an overlap": ({"a": A, "b": A | {"data_offsets": [4, 12]}}, 12, "tensor 'b' shares bytes"),
    "a hole": ({"a": A, "b": A | {"data_offsets": [9, 17]}}, 17, "tensor 'b' follows bytes of no tensor"),
    "a hole at the begin": ({"a": A | {"data_offsets": [8, 16]}}, 16, "tensor 'a' follows bytes of no tensor"),
    "a tensor past the end": ({"a": A, "b": A | {"data_offsets": [8, 16]}}, 15, "tensor 'b' ends at byte"),
    "far past the end": ({"a": A | {"shape": [2**40], "data_offsets": [0, 2**42]}}, 8, "tensor 'a' ends at byte"),
    "bytes at the end": ({"a": A}, 9, "its header speaks of .* bytes, it has"),
    "a name with a line's end": ({"a\n\x1b[31m": {}}, 8, r"tensor 'a\\n\\x1b\[31m' has no dtype"),
    "a name without end": ({"a" * 10_000: {}}, 8, r"tensor 'a{200}\.\.\.' has no dtype"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_header_that_is_not_consistent_is_refused_by_name_of_file_and_tensor(tmp_path: Path, case: str) -> None:
    header, data, message = WRONG[case]
    file = made(tmp_path / "model.safetensors", header, data)
    assert accepted_by_the_library(file) is None, "the library refuses it too"
    with pytest.raises(CheckpointError, match=rf"^[^\n]*model\.safetensors: .*{message}[^\n]*$"):
        read_header(file)


@pytest.mark.parametrize("length", [0, 1, 100, 2**31, MAX_HEADER + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_or_of_no_sense_is_refused_unread(tmp_path: Path, length: int) -> None:
    file = made(tmp_path / "model.safetensors", {"a": A}, length=length)
    assert accepted_by_the_library(file) is None
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or damaged: .*; fetch the model again"):
        read_header(file)


def test_a_header_larger_than_the_format_allows_is_refused_unread(tmp_path: Path) -> None:
    file = made(tmp_path / "model.safetensors", {"a": A}, length=MAX_HEADER + 1)
    with file.open("r+b") as writer:
        writer.truncate(2 * MAX_HEADER)  # takes no room on the disk
    with pytest.raises(CheckpointError, match="a header of 100000001 bytes"):
        read_header(file)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        b'{"b":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}',
        b'{"__metadata__":{"a":"1","a":"2"},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_a_name_that_stands_there_twice_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .*the name '(a|shape)' stands there twice"):
        read_header(made(tmp_path / "x.safetensors", header))


def test_no_damage_of_a_header_is_accepted_that_the_library_refuses(tmp_path: Path) -> None:
    rng = random.Random(0)
    file = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2, 3), "b.c": torch.ones(5).half(), "d": torch.ones(0)}, file, metadata={"e": "f"})
    sound = file.read_bytes()
    start = 8 + int.from_bytes(sound[:8], "little")
    accepted = 0
    for _ in range(2000):
        damaged = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2))):
            damaged[rng.randrange(start)] = rng.choice(b'0123456789[]{},:"aFB \x00\xff')
        with file.open("r+b") as writer:
            writer.write(damaged)
        try:
            entries, _ = read_header(file)
        except CheckpointError:
            continue
        accepted += 1
        assert {name: entry.shape for name, entry in entries.items()} == accepted_by_the_library(file)
    assert accepted > 10, "a changed name is no damage"


# -- what is sound --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BITS)
def test_each_dtype_of_the_library_is_read_at_its_size(tmp_path: Path, dtype: str) -> None:
    size = BITS[dtype]  # 8 elements
    header = {"a": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, size]}}
    file = made(tmp_path / "x.safetensors", header, size)
    assert accepted_by_the_library(file) is not None
    assert read_header(file)[0]["a"].nbytes == size


@pytest.mark.parametrize("name", ["", "ü", "a b/../c", "a\x00b\nc", '"', "\\", "日本", "𝄞", "\u202e", "a" * 10_000])
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    file = tmp_path / "x.safetensors"
    save_file({name: torch.ones(2, 3)}, file, metadata={"of": name})
    entries, metadata = read_header(file)
    assert list(entries) == [name]
    assert metadata == {"of": name}
    tensors = {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    file.write_bytes(write_header(tensors, metadata, 0) + bytes(24))
    assert accepted_by_the_library(file) == {name: (2, 3)}
    with safe_open(file, framework="pt") as reader:
        assert reader.metadata() == {"of": name}


def test_empty_tensors_extra_fields_any_order_and_no_tensors_at_all_are_sound(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 7], "data_offsets": [8, 8]}
    for header, data in (({"b": A | {"data_offsets": [8, 16]}, "e": empty, "a": A | {"more": 1}}, 16), ({}, 0)):
        file = made(tmp_path / "x.safetensors", header | {"__metadata__": None}, data)
        entries, metadata = read_header(file)
        assert {name: entry.shape for name, entry in entries.items()} == accepted_by_the_library(file)
        assert metadata == {}


@pytest.mark.parametrize("first", [0, 8, 4096, 5824, 5001, 2**40 + 16])
def test_the_data_begin_where_they_did_in_a_block_and_always_at_a_multiple_of_8(first: int) -> None:
    for length in range(1, 40):
        start = len(write_header({"a" * length: A}, {}, first))
        assert start % 8 == 0
        assert first % 8 or start % 4096 == first % 4096


# -- the index ------------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return saved(tiny("llama"), tmp_path / "in", max_shard_size="40KB")


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/../../secret.safetensors",
        "sub/secret.safetensors",
        "..\\secret.safetensors",
        "C:secret.safetensors",
        "secret\x00.safetensors",
        "secret\n.safetensors",
        "config.json",
        "pytorch_model.bin",
        "..",
        "",
    ],
)
def test_an_index_cannot_lead_out_of_the_folder_or_to_other_files(sharded: Path, shard: str) -> None:
    save_file({"model.norm.weight": torch.ones(32)}, sharded.parent / "secret.safetensors")
    (sharded / "sub").mkdir()
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (sharded / INDEX).write_text(json.dumps(index))
    told = r"index\.json says that the tensor 'model\.norm\.weight' is in '.*'; supported are \.safetensors"
    removal_refused(sharded, CheckpointError, told)


def test_an_index_that_names_another_shard_than_the_tensors_is_told(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    here = index["weight_map"]["model.norm.weight"]
    other = next(file for file in files if file != here)
    index["weight_map"]["model.norm.weight"] = other
    (sharded / INDEX).write_text(json.dumps(index))
    removal_refused(sharded, CheckpointError, rf"tensor 'model\.norm\.weight' is in {other}, but it is in {here}")


def test_an_index_that_names_a_tensor_that_is_nowhere_is_told(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["ghost"] = min(index["weight_map"].values())
    (sharded / INDEX).write_text(json.dumps(index))
    told = r"tensor 'ghost' is in model-00001-of-\d+\.safetensors, but it is in no file"
    removal_refused(sharded, CheckpointError, told)


def test_a_tensor_in_two_files_is_told(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    (sharded / second).write_bytes((sharded / first).read_bytes())
    removal_refused(sharded, CheckpointError, rf"is in two files, {first} and {second}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "the name 'a' stands there twice"),
        (b'{"weight_map": {}, "weight_map": {}}', "the name 'weight_map' stands there twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff", "not UTF-8"),
        (b'{"weight_map": {"a": ["x.safetensors"]}}', "a file's name is no text"),
    ],
)
def test_an_index_that_cannot_be_read_is_told(sharded: Path, text: bytes, message: str) -> None:
    (sharded / INDEX).write_bytes(text)
    removal_refused(sharded, CheckpointError, rf"index\.json is damaged \(.*{message}")


def test_an_index_that_is_larger_than_any_is_refused_unread(sharded: Path) -> None:
    with (sharded / INDEX).open("r+b") as writer:
        writer.truncate(MAX_HEADER + 1)  # takes no room on the disk
    removal_refused(sharded, CheckpointError, r"index\.json' has 100,000,001 bytes, and such files are read whole")


def test_a_damaged_shard_is_told_by_its_name(sharded: Path) -> None:
    second = sorted(sharded.glob("*.safetensors"))[1]
    made(second, {"a": A | {"shape": [3]}})
    removal_refused(sharded, CheckpointError, rf"{second.name}: .*tensor 'a' has 8 bytes")
