"""The gate for models: what cannot work is refused in a line before anything starts, and what is let through works."""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, architecture
from safetensors.torch import load_file, save_file
from tiny_models import CHATML, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.rendering import read_rendering
from rlhf_core.batching.templates import Renderer
from rlhf_core.events import EventLog
from rlhf_core.models.gate import examine
from rlhf_core.models.load import load_lm, load_tokenizer
from rlhf_core.models.weight_files import WHOLE, parameters_in
from rlhf_core.settings.models import BaseModelConfig
from tasks.base_model import STAGE
from tasks.runtime.contract.context import StageContext

Spoil = Callable[[Path], object]
QUESTION = {"role": "user", "content": "Which ferry?"}
ANSWER = {"role": "assistant", "content": "Heron."}


def take_in(folder: Path, tmp_path: Path) -> Path:
    output = tmp_path / "taken-in"
    output.mkdir()
    events = EventLog(tmp_path / "events.jsonl")
    STAGE.run(StageContext(BaseModelConfig(path=str(folder)), {}, {}, output, tmp_path / "resume", 0, 1, events))
    return output


def refuse(folder: Path, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        examine(folder, BaseModelConfig(path=str(folder)))
    assert len(str(refused.value).splitlines()) == 1


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def write_template(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / WHOLE), folder / "pytorch_model.bin")
    (folder / WHOLE).unlink()


def add_tokens(folder: Path, **named: object) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(named)
    tokenizer.save_pretrained(folder)


def shards_named(folder: Path, *names: str) -> None:
    (folder / WHOLE).rename(folder / "model-00001-of-00002.safetensors")
    edit_json(folder / "model.safetensors.index.json", weight_map={str(i): name for i, name in enumerate(names)})


def change_header(folder: Path, **values: object) -> None:
    """Give one tensor of the folder's weights other values in the header."""
    data = (folder / WHOLE).read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    header["model.norm.weight"] |= values
    changed = json.dumps(header).encode()
    (folder / WHOLE).write_bytes(struct.pack("<Q", len(changed)) + changed + data[end:])


def extra_weight(folder: Path) -> None:
    weights = load_file(folder / WHOLE) | {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}
    save_file(weights, folder / WHOLE, metadata={"format": "pt"})


def new_turns(folder: Path) -> None:
    add_tokens(folder, additional_special_tokens=["<|turn|>", "<|end_turn|>"])
    write_template(folder, CHATML.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|end_turn|>"))


def cut(name: str, n_bytes: int) -> Spoil:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-n_bytes])


REFUSED: dict[str, tuple[Spoil, str]] = {
    "lfs": (lambda f: (f / WHOLE).write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n"), "Git LFS pointer.*git lfs pull"),
    "empty": (lambda f: (f / WHOLE).write_bytes(b""), r"model\.safetensors is empty"),
    "cut": (cut(WHOLE, 2000), r"model\.safetensors has [\d,]+ bytes and is no whole safetensors file"),
    "in the header": (lambda f: (f / WHOLE).write_bytes(struct.pack("<Q", 10**12) + b"{}"), "fewer than its header alone"),
    "no header": (lambda f: (f / WHOLE).write_bytes(struct.pack("<Q", 4) + b"abcd"), "is no whole safetensors file"),
    "offsets": (lambda f: change_header(f, data_offsets=["0", "4"]), "is no whole safetensors file"),
    "type of another size": (lambda f: change_header(f, dtype="F16"), "is no whole safetensors file"),
    "nested": (lambda f: (f / WHOLE).write_bytes(struct.pack("<Q", 10**5) + b"[" * 10**5), "is no whole safetensors file"),
    "subfolder": (lambda f: shards_named(f, "parts/a.safetensors"), r"not beside it: parts/a\.safetensors"),
    "parent": (lambda f: shards_named(f, "../a.safetensors"), r"not beside it: \.\./a\.safetensors"),
    "shard": (lambda f: shards_named(f, "model-00002-of-00002.safetensors"), r"lacks 1 of its 1.*model-00002-of-00002"),
    "index": (lambda f: shards_named(f, "model-00001-of-00002.safetensors"), "in none of its files: 0"),
    "broken index": (lambda f: ((f / WHOLE).unlink(), (f / "model.safetensors.index.json").write_text("[]")), "is no index"),
    "cut bin": (lambda f: (as_bin(f), cut("pytorch_model.bin", 2000)(f)), r"pytorch_model\.bin is cut off"),
    "other bin": (
        lambda f: (as_bin(f), torch.save({"step": 3}, f / "pytorch_model.bin")),
        r"pytorch_model\.bin holds more than weights",
    ),
    "adapter": (lambda f: edit_json(f / "adapter_config.json", peft_type="LORA"), r"adapter_config\.json.*merge"),
    "fewer layers": (lambda f: edit_json(f / "config.json", num_hidden_layers=1), "holds 9 weights that the configuration has no"),
    "more layers": (lambda f: edit_json(f / "config.json", num_hidden_layers=3), "lacks 9 weights of the model"),
    "another width": (lambda f: edit_json(f / "config.json", intermediate_size=32), r"disagree on shapes: .*gate_proj.*\[64, 32\]"),
    "a weight more": (extra_weight, r"holds 1 weights.*q_proj\.bias"),
    "quantised": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "mxfp4"}),
        r"has a quantization_config \(mxfp4\).*plain weights",
    ),
    "impossible config": (lambda f: edit_json(f / "config.json", num_attention_heads=0), r"config\.json cannot be used"),
    "turns without rows": (new_turns, r"ids up to \d+ and its embedding \d+ rows: <\|end_turn\|>, <\|turn\|> would have none"),
    "generation": (lambda f: edit_json(f / "generation_config.json", max_new_tokens=0), r"generation_config\.json: .*max_new_tokens"),
    "decoding": (lambda f: edit_json(f / "generation_config.json", num_beams=4, num_beam_groups=2), r"asks for group_beam_search"),
    "template": (lambda f: write_template(f, CHATML.replace("message['content']", "message['content'] + 1")), "chat_template fails.*TypeError"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_work_is_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    folder = tiny_model(tmp_path, "llama")
    spoil, said = REFUSED[fault]
    spoil(folder)
    refuse(folder, said)


def left_by_others(folder: Path) -> None:
    edit_json(folder / "pytorch_model.bin.index.json", weight_map={"lm_head.weight": "pytorch_model-00001-of-00002.bin"})
    edit_json(folder / "model.safetensors.index.json", weight_map={"lm_head.weight": "model-00001-of-00002.safetensors"})
    (folder / "consolidated.safetensors").write_bytes(b"of another tool")
    torch.save(load_file(folder / WHOLE), folder / "pytorch_model.bin")


def bin_shards(folder: Path) -> None:
    weights = sorted(load_file(folder / WHOLE).items())
    parts = {f"pytorch_model-0000{i + 1}-of-00002.bin": dict(weights[i::2]) for i in range(2)}
    for name, part in parts.items():
        torch.save(part, folder / name)
    edit_json(folder / "pytorch_model.bin.index.json", weight_map={key: name for name, part in parts.items() for key in part})
    (folder / WHOLE).unlink()


MENDED: dict[str, Spoil] = {
    "sound": lambda folder: None,
    "bin": as_bin,
    "bin shards": bin_shards,
    "left by others": left_by_others,
    "pad without row": lambda f: add_tokens(f, pad_token="<|pad|>"),
    "image token without row": lambda f: add_tokens(f, additional_special_tokens=["<|image|>"]),
    "pad id without row": lambda f: edit_json(f / "config.json", pad_token_id=32000),
    "temperature": lambda f: edit_json(f / "generation_config.json", temperature=0.9, top_p=0.6),
    "temperature unused": lambda f: edit_json(f / "generation_config.json", temperature=0.9, do_sample=False),
    "stops without row": lambda f: edit_json(f / "generation_config.json", eos_token_id=[2, 32000]),
}


@pytest.mark.parametrize("fault", MENDED)
def test_what_is_let_through_is_loaded_as_it_was_and_saved_again(tmp_path: Path, fault: str) -> None:
    folder = tiny_model(tmp_path, "llama")
    ids = torch.arange(3, 20)[None]
    before = load_lm(folder, dtype="fp32", attention="sdpa")(ids).logits
    MENDED[fault](folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    output = take_in(folder, tmp_path)
    model, tokenizer = load_lm(output, dtype="fp32", attention="sdpa"), load_tokenizer(output)
    assert torch.equal(model(ids).logits, before)
    assert max(tokenizer.get_vocab().values()) < model.get_input_embeddings().weight.shape[0]
    assert tokenizer.pad_token_id is not None
    model.save_pretrained(tmp_path / "saved")
    assert {path.name for path in output.glob("*.bin*")} == set()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files, "the user's folder is not ours to change"


def test_settings_of_sampling_mean_sampling_unless_it_is_switched_off(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    for given, sampled in (({}, True), ({"do_sample": False}, False)):
        edit_json(folder / "generation_config.json", temperature=0.9, **given)
        seen = examine(folder, BaseModelConfig(path=str(folder)))
        assert seen.generation.do_sample is sampled
        assert seen.generation.temperature == (0.9 if sampled else None)
        assert "generation_config.json was made valid" in seen.notes[0]


def test_ends_of_the_config_that_have_a_row_stay(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    edit_json(folder / "config.json", eos_token_id=[1, 32000])
    assert examine(folder, BaseModelConfig(path=str(folder))).config == {"eos_token_id": [1]}
    edit_json(folder / "config.json", eos_token_id=[32000])
    own = load_tokenizer(folder).eos_token_id
    assert examine(folder, BaseModelConfig(path=str(folder))).config == {"eos_token_id": own}


def test_a_token_that_left_the_tokenizer_is_text_like_any_other(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    add_tokens(folder, pad_token="<|pad|>", additional_special_tokens=["<|image|>"])
    tokenizer = load_tokenizer(take_in(folder, tmp_path))
    ids = tokenizer.encode("<|image|><|pad|>", add_special_tokens=False)
    assert len(ids) > 4
    assert tokenizer.decode(ids) == "<|image|><|pad|>"


def test_a_tokenizer_that_names_no_end_of_text_pads_with_the_end_of_a_turn(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in named.items() if key not in {"eos_token", "pad_token"}}))
    assert load_tokenizer(folder).pad_token is None
    assert load_tokenizer(take_in(folder, tmp_path)).pad_token == "<|im_end|>"


def test_a_model_that_keeps_its_cache_to_itself_is_refused(tmp_path: Path) -> None:
    refuse(architecture(tmp_path, "recurrent_gemma"), r"RecurrentGemmaForCausalLM keeps its state to itself")


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"recurrent_gemma"}))
def test_no_architecture_is_refused_for_the_names_of_its_weights(tmp_path: Path, name: str) -> None:
    folder = architecture(tmp_path, name)
    seen = examine(folder, BaseModelConfig(path=str(folder)), scores=True)
    assert seen.notes == ()


@pytest.mark.parametrize("constant", ["attn.bias", "attn.masked_bias"])
def test_constants_that_older_files_hold_beside_the_weights_are_passed_over(tmp_path: Path, constant: str) -> None:
    folder = tiny_model(tmp_path, "gpt2")
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, f"transformer.h.0.{constant}": torch.ones(1, 1, 8, 8)}, folder / "model.safetensors", {"format": "pt"})
    assert examine(folder, BaseModelConfig(path=str(folder))).notes == ()


def test_a_folder_is_known_from_its_headers_however_large_it_is(tmp_path: Path) -> None:
    """A sparse file of 6 GB, which takes no room on the disk, and would take seconds to read."""
    folder = tiny_model(tmp_path, "llama")
    edit_json(folder / "config.json", hidden_size=2048, intermediate_size=16384, num_hidden_layers=12, num_attention_heads=16)
    edit_json(folder / "config.json", num_key_value_heads=16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    entries, end = {}, 0
    for key, parameter in model.named_parameters():
        entries[key] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [end, end + 4 * parameter.numel()]}
        end += 4 * parameter.numel()
    header = json.dumps(entries).encode()
    with (folder / WHOLE).open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    assert parameters_in(folder) == end // 4 > 10**9
    assert examine(folder, BaseModelConfig(path=str(folder))).notes == ()
    with (folder / WHOLE).open("r+b") as file:
        file.truncate(8 + len(header) + end - 1)
    refuse(folder, "is no whole safetensors file")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    as_bin(folder)
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(ran), "w"))

    torch.save({"model.norm.weight": Hostile()}, folder / "pytorch_model.bin")
    assert zipfile.is_zipfile(folder / "pytorch_model.bin")
    refuse(folder, r"pytorch_model\.bin cannot be read as weights")
    assert not ran.exists()


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}" + CHATML
IGNORED = CHATML.replace("{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}")


@pytest.mark.parametrize(("template", "said"), [(NO_SYSTEM, "no system turns here"), (IGNORED, "leaves it out")])
def test_what_a_template_refuses_is_written_down_and_honoured(tmp_path: Path, template: str, said: str) -> None:
    folder = tiny_model(tmp_path, "llama")
    write_template(folder, template)
    output = take_in(folder, tmp_path)
    assert set(read_rendering(output).refuses) == {"system", "tools"}
    assert said in read_rendering(output).refuses["system"]
    renderer = Renderer(load_tokenizer(output))
    assert renderer.conversation([QUESTION, ANSWER]).n_targets
    with pytest.raises(DataError, match=said):
        renderer.conversation([{"role": "system", "content": "Be brief."}, QUESTION, ANSWER])
    with pytest.raises(DataError, match=said):
        renderer.prompt_ids([{"role": "system", "content": "Be brief."}, QUESTION])


def test_a_template_that_renders_everything_refuses_nothing(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    write_template(folder, "{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML)
    assert read_rendering(take_in(folder, tmp_path)).refuses == {}


def test_a_template_that_wants_parts_gets_them_and_one_that_opens_a_think_block_is_let_through(tmp_path: Path) -> None:
    parts = CHATML.replace(
        "message['content'] +", "(message['content'][0]['text'] if message['content'] is not string else '') +"
    )
    opens = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
    for number, template in enumerate((parts, opens)):
        folder = tiny_model(tmp_path / str(number), "llama")
        write_template(folder, template)
        renderer = Renderer(load_tokenizer(take_in(folder, tmp_path / str(number))))
        row = renderer.conversation([QUESTION, ANSWER])
        assert row.ids[: row.prompt_length] == renderer.prompt_ids([QUESTION])
        assert "Which ferry?" in renderer.tokenizer.decode(row.ids)
        assert "Heron." in renderer.tokenizer.decode(row.ids[row.prompt_length :])


def test_generation_settings_of_the_artifact_are_those_that_were_mended(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "llama")
    edit_json(folder / "generation_config.json", temperature=0.9)
    GenerationConfig.from_pretrained(take_in(folder, tmp_path)).validate(strict=True)
