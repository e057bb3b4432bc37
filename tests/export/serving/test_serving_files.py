"""Every program that loads an exported folder gets the prompts of training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import trl
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, LlamaConfig

from lora_sft.errors import ExportError
from lora_sft.export.adapter_origin import AdapterOrigin
from lora_sft.export.public_text import make_public
from lora_sft.export.serving.model_card import make_adapter_card, make_merged_card
from lora_sft.export.serving.serving_files import (
    check_same_prompts,
    write_config,
    write_generation_config,
    write_serving_files,
    write_tokenizer,
)
from lora_sft.model_files.base_files import BaseFiles
from tests.conftest import make_rows
from tests.tiny import CHATML, LLAMA3, make_tiny_llama, make_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
LICENCE_HEAD = "---\nlanguage: en\nlicense: other\nlicense_name: tiny\ntags:\n- a\n---\n# Base\n"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def base(tmp_path) -> Path:
    """A base model with licence, card, and stop tokens that its tokenizer does not have."""
    folder = make_tiny_llama(tmp_path / "models" / "tiny-base")
    (folder / "LICENSE.txt").write_text("Be kind.")
    (folder / "README.md").write_text(LICENCE_HEAD)
    (folder / "tokenizer.model").write_bytes(b"sentencepiece")
    # A temperature without sampling: transformers loads this file but refuses to save it.
    generation = {"temperature": 0.6, "top_p": 0.9, "do_sample": False, "eos_token_id": [2, 9]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


# --- through the command line ---------------------------------------------------------------------


def test_the_exported_folder_gives_the_prompt_ids_of_training(
    command, write_recipe, tmp_path, base
):
    """The template is Qwen3's. Training switched thinking off; a server passes no argument."""
    template = shutil.copy(TEMPLATES / "qwen3.jinja", tmp_path / "qwen3.jinja")
    recipe = write_recipe(
        model={"model_name_or_path": str(base)},
        data={"chat_template": str(template), "chat_template_kwargs": {"enable_thinking": False}},
        train={"max_steps": 2},
    )
    previewed = command("preview", recipe, "--format", "json", "--rows", "6").json["rows"]
    assert command("train", recipe).code == 0
    assert command("merge", tmp_path / "run", tmp_path / "merged").code == 0
    rows = make_rows(48)
    for folder in (tmp_path / "merged", tmp_path / "run" / "adapter"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for shown in previewed:
            prompt = rows[shown["row"]]["messages"][:1]
            ids = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
            learned_from = next(i for i, label in enumerate(shown["labels"]) if label != -100)
            assert list(ids) == shown["input_ids"][:learned_from]
        thinking = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False, enable_thinking=True
        )
        assert list(thinking) != list(ids), "the value of a request is not used"
    assert len(previewed) == 6
    check_ready_to_serve(tmp_path / "merged", base, tmp_path)
    check_adapter_folder(tmp_path / "run" / "adapter", tmp_path)


def check_ready_to_serve(merged: Path, base: Path, local: Path) -> None:
    config, generation = read(merged / "config.json"), read(merged / "generation_config.json")
    assert "quantization_config" not in config
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["vocab_size"] == len(AutoTokenizer.from_pretrained(merged))
    tokenizer = AutoTokenizer.from_pretrained(merged)
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert set(generation["eos_token_id"]) == {2, 9, im_end}
    assert generation["temperature"] == 0.6, "the base model's own setting is lost"
    assert GenerationConfig.from_pretrained(merged).top_p == 0.9
    assert (merged / "LICENSE.txt").read_text() == "Be kind."
    assert (merged / "tokenizer.model").exists()
    card = (merged / "README.md").read_text()
    assert "license: other\nlicense_name: tiny\n" in card
    assert "| verdict | passed |" in card
    assert "| `adapter.r` | `4` |" in card
    assert "source rows were used for training" in card
    assert 'PARAMETER stop "<|im_end|>"' in (merged / "Modelfile").read_text()
    for name in ("README.md", "config.json", "tokenizer_config.json", "Modelfile"):
        assert str(local) not in (merged / name).read_text(), name


def check_adapter_folder(adapter: Path, local: Path) -> None:
    assert set(read(adapter / "generation_config.json")["eos_token_id"]) > {2, 9}
    assert "ADAPTER ." in (adapter / "Modelfile").read_text()
    card = (adapter / "README.md").read_text()
    assert "# LoRA adapter for tiny-base" in card
    assert not re.search(r"path/to|TODO|\[More Information Needed\]", card)
    assert str(local) not in card
    assert (adapter / "LICENSE.txt").exists()


# --- config.json ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "theta", "scaling"),
    [
        ({"rope_theta": 1e6, "rope_type": "default"}, 1e6, None),
        (
            {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0},
            5e5,
            {"rope_type": "linear", "factor": 4.0},
        ),
    ],
)
def test_rope_and_dtype_have_the_names_that_transformers_4_reads(tmp_path, rope, theta, scaling):
    """Without `rope_theta`, transformers 4.56 uses 10,000, and the answers are wrong."""
    LlamaConfig(rope_parameters=rope, dtype="bfloat16").save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    write_config(tmp_path, {})
    config = read(tmp_path / "config.json")
    assert (config["rope_theta"], config["rope_scaling"]) == (theta, scaling)
    assert config["torch_dtype"] == "bfloat16"
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == before


def test_a_config_keeps_the_fields_of_the_base_model_without_its_quantisation(tmp_path):
    config = {
        "model_type": "llama",
        "dtype": "bfloat16",
        "quantization_config": {"load_in_4bit": True},
        "_name_or_path": "/home/me/base",
        "text_config": {"quantization_config": {}, "dtype": "bfloat16"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    base = {"sliding_window": 4096, "torch_dtype": "float16", "quantization_config": {}}
    base |= {"tie_word_embeddings": True, "vocab_size": 9}  # a merge may change both
    write_config(tmp_path, base)
    assert read(tmp_path / "config.json") == {
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "torch_dtype": "bfloat16"},
        "sliding_window": 4096,
    }


GEMMA3 = {
    "model_type": "gemma3_text",
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
}
PHI3 = {  # transformers 4.56 requires exactly these three keys
    "model_type": "phi3",
    "rope_theta": 1e4,
    "rope_scaling": {"type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48},
    "original_max_position_embeddings": 4096,
    "max_position_embeddings": 131072,
}
GPT_NEOX = {"model_type": "gpt_neox", "rotary_pct": 0.25, "rotary_emb_base": 10000}
GLM4 = {"model_type": "glm4", "partial_rotary_factor": 0.5, "rope_theta": 1e4}


@pytest.mark.parametrize("published", [GEMMA3, PHI3, GPT_NEOX, GLM4], ids=lambda c: c["model_type"])
def test_a_config_keeps_its_published_fields_and_their_meaning(tmp_path, published):
    (tmp_path / "config.json").write_text(json.dumps(published))
    before = AutoConfig.from_pretrained(tmp_path)
    before.save_pretrained(tmp_path)
    write_config(tmp_path, published)
    written = read(tmp_path / "config.json")
    assert {key: written[key] for key in published} == published
    after = AutoConfig.from_pretrained(tmp_path)
    assert after.rope_parameters == before.rope_parameters


# --- generation_config.json -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained", "inherited", "expected"),
    [
        ([5, 2], {"eos_token_id": 2}, [2, 5]),  # training records all stop tokens
        (
            [],
            {"eos_token_id": [9, 2], "_from_model_config": True},
            [2, 5, 9],
        ),  # no record of training: those of the base model and the tokenizer
        ([], {}, 5),
    ],
)
def test_the_generation_config_has_every_stop_token(tmp_path, trained, inherited, expected):
    tokenizer = make_tokenizer()
    assert tokenizer.eos_token_id == 5
    write_generation_config(tmp_path, tokenizer, trained, inherited)
    config = read(tmp_path / "generation_config.json")
    assert config["eos_token_id"] == expected
    assert config["pad_token_id"] == tokenizer.pad_token_id
    assert "_from_model_config" not in config, "transformers 4.x would read config.json"


# --- tokenizer ------------------------------------------------------------------------------------


def test_the_tokenizer_files_can_be_read_by_transformers_4(tmp_path):
    """transformers 4.x has no TokenizersBackend, and calls .keys() on extra_special_tokens."""
    tokenizer = make_tokenizer(LLAMA3)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|h|>", "<|eot|>"]})
    write_tokenizer(tmp_path, tokenizer, AdapterOrigin("base"))
    config = read(tmp_path / "tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|h|>", "<|eot|>"]
    assert not isinstance(config.get("extra_special_tokens"), list)
    assert not {"is_local", "local_files_only", "name_or_path"} & set(config)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    assert reloaded.extra_special_tokens == tokenizer.extra_special_tokens
    assert (tmp_path / "chat_template.jinja").read_text() == LLAMA3


def test_real_tokenizers_keep_every_id(tmp_path, shared_data):
    seen = 0
    for folder in sorted((shared_data / "tokenizers").iterdir()):
        if not (folder / "tokenizer.json").exists():
            continue
        tokenizer, out = AutoTokenizer.from_pretrained(folder), tmp_path / folder.name
        kwargs = {"enable_thinking": False}
        write_tokenizer(out, tokenizer, AdapterOrigin("base", chat_template_kwargs=kwargs))
        check_same_prompts(out, tokenizer, kwargs)
        seen += 1
    assert seen >= 3


def test_a_folder_that_gives_other_prompts_is_refused(tmp_path):
    tokenizer = make_tokenizer(CHATML)
    write_tokenizer(tmp_path, tokenizer, AdapterOrigin("base"))
    (tmp_path / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "<|eot|>"))
    with pytest.raises(ExportError, match="other ids than in training"):
        check_same_prompts(tmp_path, tokenizer, {})


def test_the_template_date_is_exported_and_without_it_a_note_is_printed(tmp_path, capfd):
    clocked = "{{- strftime_now('%d %b %Y') -}}" + CHATML
    for day, has_note in (("2024-07-26", False), (None, True)):
        folder = make_tiny_llama(tmp_path / f"base-{has_note}", chat_template=clocked)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        origin = AdapterOrigin(str(folder), template_date=day)
        write_serving_files(folder, tokenizer, origin)
        text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False
        )
        assert text.startswith("26 Jul 2024") is not has_note
        assert ("the chat template shows the date" in capfd.readouterr().err) is has_note


# --- cards and the files of the base model --------------------------------------------------------


def test_a_base_model_that_cannot_be_reached_has_no_files(tmp_path):
    missing = BaseFiles.find("nobody/has-this-model")
    assert missing.read_json("config.json") == {}
    assert missing.read_licence() == {}
    assert missing.copy_to(tmp_path) == []


def test_a_card_shows_data_and_recipe_and_names_no_path():
    account = {"kept": 9, "read": 12, "target_tokens": 40, "tokens": 90, "dropped": {"overlong": 3}}
    recipe = make_public(
        {
            "adapter": {"r": 8, "init_from": "/home/me/old"},
            "data": {"datasets": [{"path": "/data/secret/rows.jsonl", "name": None}]},
            "train": {"learning_rate": 2e-4, "logging_steps": 5},
            "output_dir": "/home/me/run",
        }
    )
    origin = AdapterOrigin("org/base", recipe=recipe, account=account)
    card = make_adapter_card(origin, {"license": "mit"})
    assert "base_model: org/base\nlicense: mit\n" in card
    assert "9 of 12 source rows were used for training. 40 of 90 tokens were learned." in card
    assert "Dropped: 3 overlong." in card
    assert "| `data.datasets.0.path` | `rows.jsonl` |" in card
    assert "| `train.learning_rate` | `0.0002` |" in card
    assert "logging" not in card
    assert "/home" not in card
    assert "/data" not in card


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("http://host/train.jsonl?token=SECRET", "http://host/train.jsonl"),
        ("https://me:SECRET@host:8443/a.jsonl#SECRET", "https://host:8443/a.jsonl"),
        ("https://SECRET@host", "https://host"),
        ("s3://KEY:SE@CRET@bucket/rows", "s3://bucket/rows"),
        (
            "zip://a.jsonl::https://me:SECRET@host/a.zip?sig=SECRET",
            "zip://a.jsonl::https://host/a.zip",
        ),
        ("https://host/a%20b.jsonl", "https://host/a%20b.jsonl"),
        ("https://me:SE/CRET@host/a", "https://host/a"),
        ("https://me:SE?CRET@host/a", "https://"),
        ("https://host/x?mail=a@SECRET", "https://"),
        ("https://host/x;sig=SECRET", "https://host/x"),
        ("https://host/x&token=SECRET", "https://host/x"),
        ("http://me:SECRET@[::1]:80/x?sig=SECRET", "http://[::1]:80/x"),
        ("hf://datasets/a/b@v1/rows.jsonl", "hf://datasets/a/b@v1/rows.jsonl"),
        ("file:///home/SECRET/my rows.jsonl", "my rows.jsonl"),
        ("FILE:/home/me@SECRET;SECRET/a.jsonl", "a.jsonl"),
        ("zip://a.jsonl::/data/SECRET/x.zip", "zip://a.jsonl::x.zip"),
        ("zip://a.jsonl::file:///data/SECRET/x.zip", "zip://a.jsonl::x.zip"),
        ("/data/SECRET/rows.jsonl", "rows.jsonl"),
        ("~/SECRET/rows.jsonl", "rows.jsonl"),
        ("Answer: std::vector and profile: yes/no", "Answer: std::vector and profile: yes/no"),
        ("org/rows", "org/rows"),
        ("what? @me #1", "what? @me #1"),
    ],
)
def test_a_public_recipe_has_no_local_paths_passwords_and_queries(address, public):
    recipe = {"data": {"datasets": [{"path": address, "data_files": {"train": [address]}}]}}
    shown = {"data": {"datasets": [{"path": public, "data_files": {"train": [public]}}]}}
    assert make_public(recipe) == shown
    assert "SECRET" not in make_adapter_card(AdapterOrigin("a/b", recipe=make_public(recipe)))


def test_a_card_without_data_and_recipe_has_no_empty_section():
    report = {"onto": "original"}
    card = make_merged_card(AdapterOrigin("/home/me/base"), report)
    assert "Not verified" in card
    assert "## Data" not in card
    assert "## Recipe" not in card
    assert "/home" not in card
    assert card.startswith("---\nlibrary_name: transformers\n")
