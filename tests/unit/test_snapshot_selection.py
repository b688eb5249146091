# SPDX-License-Identifier: Apache-2.0
"""Of each shape that repositories have, what is needed comes, once, and nothing else."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_snapshot_entries import PATHS

from ansible.module_utils.firstlight import findings
from ansible.module_utils.firstlight.snapshots import entries, selection
from ansible.module_utils.firstlight.snapshots.selection import NoChoice

REPO, COMMIT = "example/model", "0" * 40
VLLM, LLAMA = ("safetensors",), ("gguf",)
CARD = [".gitattributes", "README.md", "LICENSE"]
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]
HF = ["config.json", "generation_config.json", *TOKENIZER]


def shards(stem, count, suffix=".safetensors"):
    return ["%s-%05d-of-%05d%s" % (stem, one, count, suffix) for one in range(1, count + 1)]


def made(paths, repo_id=REPO):
    """A repository of these files; weights are large."""
    large = (".safetensors", ".gguf", ".bin", ".pth", ".pt", ".onnx", ".h5", ".msgpack")
    return entries.checked(repo_id, COMMIT, [
        entries.Entry(path, 2**30 if path.endswith(large) else 1000,
                      hashlib.sha256(path.encode()).hexdigest(), None)
        for path in dict.fromkeys(paths)])


def select(paths, formats=VLLM, quantisation=None, allow=(), ignore=()):
    return selection.select(made(paths), formats, quantisation, allow, ignore)


def chosen(*arguments, **options):
    return [entry.path for entry in select(*arguments, **options).entries]


def refused(*arguments, **options):
    with pytest.raises(NoChoice) as caught:
        select(*arguments, **options)
    (only,) = caught.value.findings
    assert findings.blocking([only])
    assert only["subject"] == REPO
    assert only["id"] in str(caught.value)
    assert only["wanted"] and only["remedy"]
    return only


QWEN = [*CARD, *HF, "merges.txt", "vocab.json", "model.safetensors.index.json",
        *shards("model", 4)]
LLAMA_33 = [
    ".gitattributes", "LICENSE", "README.md", "USE_POLICY.md", *HF, "special_tokens_map.json",
    "model.safetensors.index.json", *shards("model", 30), "original/params.json",
    "original/tokenizer.model", *("original/consolidated.%02d.pth" % one for one in range(8))]
MISTRAL = [
    *CARD, *HF, "special_tokens_map.json", "params.json", "tokenizer.model",
    "tokenizer.model.v3", "consolidated.safetensors", "consolidated.safetensors.index.json",
    "model.safetensors.index.json", *shards("model", 3)]
GPT_OSS = [
    *CARD, "USAGE_POLICY", *HF, "chat_template.jinja", "special_tokens_map.json",
    *["model-%05d-of-00002.safetensors" % one for one in range(3)],
    "model.safetensors.index.json", "metal/model.bin", "original/config.json",
    "original/dtypes.json", "original/model.safetensors"]
DEEPSEEK = [
    *CARD, "LICENSE-CODE", "LICENSE-MODEL", "README_WEIGHTS.md", "config.json",
    "configuration_deepseek.py", "modeling_deepseek.py", *TOKENIZER, "figures/benchmark.png",
    "inference/model.py", "inference/configs/config_671B.json", "inference/requirements.txt",
    "model.safetensors.index.json", *shards("model", 163)]
SENTENCES = [
    ".gitattributes", "README.md", "config.json", *TOKENIZER, "special_tokens_map.json",
    "vocab.txt", "modules.json", "sentence_bert_config.json",
    "config_sentence_transformers.json", "data_config.json", "1_Pooling/config.json",
    "2_Dense/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin",
    "model.safetensors", "pytorch_model.bin", "tf_model.h5", "rust_model.ot", "train_script.py",
    "onnx/model.onnx", "onnx/model_O4.onnx", "onnx/config.json", "openvino/openvino_model.bin",
    "openvino/openvino_model.xml", "openvino/config.json"]
BERT = [
    ".gitattributes", "LICENSE", "README.md", "config.json", *TOKENIZER, "vocab.txt",
    "coreml/fill-mask/float32_model.mlpackage/Data/com.apple.CoreML/model.mlmodel",
    "coreml/fill-mask/float32_model.mlpackage/Manifest.json", "flax_model.msgpack",
    "model.onnx", "model.safetensors", "pytorch_model.bin", "rust_model.ot", "tf_model.h5"]


@pytest.mark.parametrize(("paths", "left_out"), [
    pytest.param(QWEN, {".gitattributes", "README.md"}, id="Qwen2.5-7B-Instruct"),
    pytest.param(LLAMA_33, {".gitattributes", "README.md"} | {
        path for path in LLAMA_33 if path.startswith("original/")}, id="Llama-3.3-70B-Instruct"),
    pytest.param(MISTRAL, {".gitattributes", "README.md", "consolidated.safetensors",
                           "consolidated.safetensors.index.json"}, id="Mistral-7B-Instruct-v0.3"),
    pytest.param(GPT_OSS, {".gitattributes", "README.md", "USAGE_POLICY", "metal/model.bin",
                           "original/config.json", "original/dtypes.json",
                           "original/model.safetensors"}, id="gpt-oss-20b"),
    pytest.param(DEEPSEEK, {".gitattributes", "README.md", "README_WEIGHTS.md"} | {
        path for path in DEEPSEEK if "/" in path}, id="DeepSeek-V3"),
    pytest.param(SENTENCES, {
        ".gitattributes", "README.md", "2_Dense/pytorch_model.bin", "pytorch_model.bin",
        "tf_model.h5", "rust_model.ot"} | {path for path in SENTENCES
                                           if path.startswith(("onnx/", "openvino/"))},
                 id="sentence-transformers"),
    pytest.param(BERT, {".gitattributes", "README.md", "flax_model.msgpack", "model.onnx",
                        "pytorch_model.bin", "rust_model.ot", "tf_model.h5"} | {
        path for path in BERT if path.startswith("coreml/")}, id="bert-base-uncased"),
    pytest.param([*HF, "model.safetensors", "adapter_config.json", "adapter_model.safetensors"],
                 {"adapter_config.json", "adapter_model.safetensors"}, id="merged LoRA"),
    pytest.param([*HF, "model.safetensors", "model.fp16.safetensors",
                  "pytorch_model.fp16.bin"],
                 {"model.fp16.safetensors", "pytorch_model.fp16.bin"}, id="two precisions"),
    pytest.param([*HF, *shards("model", 2), *shards("model.fp16", 2)],
                 set(shards("model.fp16", 2)), id="two precisions in parts"),
    pytest.param([*HF, "model.safetensors", "model.safetensors.index.json", *shards("model", 2)],
                 {"model.safetensors"}, id="whole and in parts"),
    pytest.param([*HF, "mtp.safetensors", "model.safetensors.index.json", *shards("model", 2)],
                 set(), id="a head that guesses ahead"),
    pytest.param([*HF, "model.safetensors.index.json", *shards("model", 2),
                  *shards("model", 3)[:2]], set(shards("model", 3)[:2]),
                 id="what was left of another upload"),
    pytest.param([*HF, "gptq_model-4bit-128g.safetensors", "quantize_config.json"], set(),
                 id="GPTQ"),
    pytest.param(["params.json", "tekken.json", "SYSTEM_PROMPT.txt",
                  "consolidated.safetensors.index.json", *shards("consolidated", 2)], set(),
                 id="Mistral's own format alone"),
    pytest.param([*HF, "qwen.tiktoken", "spiece.model", "tiktoken.model", "model.safetensors",
                  "additional_chat_templates/rag.jinja", "preprocessor_config.json",
                  "training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json",
                  "scheduler.pt", "checkpoint-500/config.json", "checkpoint-500/model.safetensors",
                  "runs/events.out.tfevents", "model-q4_k_m.gguf"],
                 {"training_args.bin", "optimizer.pt", "rng_state.pth", "trainer_state.json",
                  "scheduler.pt", "checkpoint-500/config.json",
                  "checkpoint-500/model.safetensors", "runs/events.out.tfevents",
                  "model-q4_k_m.gguf"}, id="tokenizers, and the states of a training"),
])
def test_of_a_repository_with_safetensors(paths, left_out):
    found = select(paths)
    assert left_out <= set(paths)
    assert [entry.path for entry in found.entries] == sorted(set(paths) - left_out)
    assert (found.format, found.main, found.quantisation) == ("safetensors", "", None)


def test_what_is_left_out_is_said():
    found = select(MISTRAL)
    assert "consolidated*.safetensors hold the same weights again." in found.reasons
    found = select(LLAMA_33)
    assert found.reasons == ["Left out: original/ (8, 8.59 GB)."]
    assert select(QWEN).reasons == []


# GGUF.

QUANTISATIONS = ["Q2_K", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q4_0", "Q4_K_M", "Q4_K_S", "Q5_K_M",
                 "Q6_K", "Q8_0"]
GGUF = [*CARD, "config.json", *("Model-7B-Instruct-%s.gguf" % one for one in QUANTISATIONS),
        "mmproj-Model-7B-F16.gguf", "imatrix_unsloth.gguf", "Model-7B-Instruct.imatrix"]
SPLIT = [".gitattributes", "README.md", "config.json",
         *shards("Q4_K_M/Model-70B-Q4_K_M", 2, ".gguf"), *shards("Q8_0/Model-70B-Q8_0", 3, ".gguf"),
         *shards("BF16/Model-70B-BF16", 4, ".gguf"), "Model-70B-IQ4_XS.gguf",
         "Model-70B-UD-Q4_K_XL.gguf", "mmproj-F16.gguf", "mmproj-BF16.gguf"]


@pytest.mark.parametrize("asked", QUANTISATIONS)
@pytest.mark.parametrize("spell", [str, str.lower, str.title])
def test_one_quantisation_of_ten_whatever_its_case(asked, spell):
    found = select(GGUF, LLAMA, spell(asked))
    main = "Model-7B-Instruct-%s.gguf" % asked
    assert [entry.path for entry in found.entries] == ["LICENSE", main]
    assert (found.format, found.main, found.quantisation) == ("gguf", main, asked)
    assert "Quantisation %s as asked." % asked in found.reasons


@pytest.mark.parametrize(("there", "wanted"), [
    (["f16", "q2_k", "q4_k_m", "q8_0"], "q4_k_m"), (["f16", "q2_k", "q8_0"], "q8_0"),
    (["Q6_K", "F16", "Q2_K"], "F16"), (["Q3_K_S"], "Q3_K_S"), (["mxfp4"], "mxfp4")])
def test_the_default_is_llama_cpps(there, wanted):
    found = select(["model.%s.gguf" % one for one in there], LLAMA)
    assert found.main == "model.%s.gguf" % wanted
    assert found.quantisation == wanted.upper()
    assert len(found.entries) == 1
    assert bool(found.reasons[:1] and "the default" in found.reasons[0]) == (len(there) > 1)


@pytest.mark.parametrize(("asked", "wanted", "main"), [
    (None, [*shards("Q4_K_M/Model-70B-Q4_K_M", 2, ".gguf")],
     "Q4_K_M/Model-70B-Q4_K_M-00001-of-00002.gguf"),
    ("q8_0", [*shards("Q8_0/Model-70B-Q8_0", 3, ".gguf")],
     "Q8_0/Model-70B-Q8_0-00001-of-00003.gguf"),
    ("iq4_xs", ["Model-70B-IQ4_XS.gguf"], "Model-70B-IQ4_XS.gguf"),
    ("UD-Q4_K_XL", ["Model-70B-UD-Q4_K_XL.gguf"], "Model-70B-UD-Q4_K_XL.gguf"),
    # As llama.cpp does: a name that ends in it.
    ("Q4_K_XL", ["Model-70B-UD-Q4_K_XL.gguf"], "Model-70B-UD-Q4_K_XL.gguf"),
])
def test_a_split_gguf_comes_with_all_its_parts(asked, wanted, main):
    found = select(SPLIT, LLAMA, asked)
    assert [entry.path for entry in found.entries] == wanted
    assert found.main == main


@pytest.mark.parametrize(("stem", "wanted"), [
    ("Qwen2.5-7B-Instruct-Q4_K_M", "Q4_K_M"), ("qwen2.5-7b-instruct-fp16", "FP16"),
    ("model.i1-IQ3_XXS", "IQ3_XXS"), ("ggml-model-f32", "F32"), ("gpt-oss-20b-mxfp4", "MXFP4"),
    ("gpt-oss-120b-MXFP4_MOE", "MXFP4_MOE"), ("gemma-3-27b-it-q4_0", "Q4_0"),
    ("DeepSeek-R1-UD-IQ1_S/DeepSeek-R1-UD-IQ1_S", "UD-IQ1_S"), ("BF16/part", "BF16"),
    ("Phi-3-mini-4k-instruct-q4", "Q4"), ("x-TQ1_0", "TQ1_0"), ("Q8_0-of-a-kind", "Q8_0"),
    ("Llama-3-8B", None), ("Qwen", None), ("model", None), ("Q", None), ("IQ", None)])
def test_a_quantisation_is_read_from_the_name_or_its_folder(stem, wanted):
    found = select([stem + ".gguf"], LLAMA)
    assert (found.main, found.quantisation) == (stem + ".gguf", wanted)


def test_f16_has_two_spellings():
    assert select(["m-fp16.gguf", "m-Q8_0.gguf"], LLAMA, "F16").main == "m-fp16.gguf"
    assert select(["m-F16.gguf", "m-Q8_0.gguf"], LLAMA, "fp16").main == "m-F16.gguf"


def test_heads_and_projectors_are_no_models():
    paths = ["MTP/a-Q8_0.gguf", "a-Q8_0-MTP.gguf", "mtp-a.gguf", "eagle3-a-Q8_0.gguf",
             "mmproj/a-Q8_0.gguf", "MMPROJ-a-Q8_0.gguf"]
    assert chosen([*paths, "m-Q8_0.gguf"], LLAMA, "Q8_0") == ["m-Q8_0.gguf"]
    assert refused(paths, LLAMA)["id"] == "snapshot-no-format"


def test_a_projector_comes_where_it_is_asked_for():
    assert chosen(SPLIT, LLAMA, "IQ4_XS", allow=["mmproj-F16*"]) == [
        "Model-70B-IQ4_XS.gguf", "mmproj-F16.gguf"]


def test_the_first_by_name_of_two_of_a_kind():
    found = select(["b-1B-Q8_0.gguf", "a-3B-Q8_0.gguf"], LLAMA, "Q8_0")
    assert found.main == "a-3B-Q8_0.gguf"
    assert "2 files of this quantisation; a-3B-Q8_0.gguf is the first by name." in found.reasons
    assert select(["b-1B-Q8_0.gguf", "a-3B-Q8_0.gguf"], LLAMA, ignore=["a-*"]).main == (
        "b-1B-Q8_0.gguf")


def test_a_wrong_quantisation_lists_those_that_are_there():
    found = refused(GGUF, LLAMA, "Q9_X")
    assert found["id"] == "snapshot-no-quantisation"
    assert found["found"] == "no quantisation Q9_X; there are " + ", ".join(QUANTISATIONS)
    assert "`example/model:Q2_K`" in found["remedy"]
    assert "no GGUF at all" in refused(QWEN, ("safetensors", "gguf"), "Q8_0")["found"]


def test_a_quantisation_means_gguf():
    both = [*QWEN, *GGUF]
    assert select(both, ("safetensors", "gguf")).format == "safetensors"
    assert select(both, ("gguf", "safetensors")).format == "gguf"
    assert select(both, ("safetensors", "gguf"), "Q8_0").format == "gguf"
    found = refused(both, VLLM, "Q8_0")
    assert found["id"] == "snapshot-no-quantisation"
    assert "the engine reads safetensors" in found["found"]
    assert "llama_cpp" in found["remedy"]


def test_of_safetensors_and_gguf_only_one_comes():
    both = [*QWEN, *GGUF]
    assert not any(path.endswith(".gguf") for path in chosen(both, ("safetensors", "gguf")))
    assert not any(path.endswith(".safetensors") for path in chosen(both, LLAMA))


# Pickles, and what is refused.

PICKLES = [*CARD, *HF, "pytorch_model.bin.index.json", *shards("pytorch_model", 2, ".bin"),
           "training_args.bin", "tf_model.h5"]


def test_pickles_come_only_where_they_are_asked_for():
    found = refused(PICKLES, ("safetensors", "gguf"))
    assert found["id"] == "snapshot-pickle-only"
    assert "pytorch_model-00001-of-00002.bin" in found["found"]
    assert "model_snapshot_allow_pickle" in found["remedy"]
    taken = select(PICKLES, ("safetensors", "pickle"))
    assert taken.format == "pickle"
    assert [entry.path for entry in taken.entries] == sorted(
        set(PICKLES) - {".gitattributes", "README.md", "training_args.bin", "tf_model.h5"})
    assert "run code" in taken.reasons[0]
    # Never as a second copy, and never by a pattern.
    assert not any(path.endswith(".bin") for path in chosen(
        [*QWEN, *PICKLES], ("safetensors", "pickle")))
    assert not any(path.endswith((".bin", ".pth")) for path in chosen(
        [*LLAMA_33, "pytorch_model.bin"], allow=["*"]))


@pytest.mark.parametrize(("paths", "formats", "id_", "words"), [
    (GGUF, VLLM, "snapshot-no-format", "only GGUF files"),
    (QWEN, LLAMA, "snapshot-no-format", "only safetensors"),
    ([*CARD, "config.json"], VLLM, "snapshot-no-format", "no weights"),
    ([], VLLM, "snapshot-no-format", "no files"),
    (["model_index.json", "unet/model.safetensors", "vae/model.safetensors"], VLLM,
     "snapshot-no-format", "diffusers"),
    (["config.json", "onnx/model.onnx"], VLLM, "snapshot-no-format", "no weights"),
    (["README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], VLLM,
     "snapshot-adapter-only", "LoRA"),
    (["adapter_config.json", "adapter_model.bin"], ("safetensors", "pickle"),
     "snapshot-adapter-only", "LoRA"),
    (["config.json", *shards("model", 4)[1:]], VLLM, "snapshot-shards-missing", "00001-of-00004"),
    (["config.json", "model-00001-of-99999.safetensors"], VLLM, "snapshot-shards-missing",
     "00002-of-99999, 00003-of-99999"),
    (shards("m-Q4_K_M", 3, ".gguf")[:2], LLAMA, "snapshot-shards-missing", "00003-of-00003"),
])
def test_what_does_not_fit_is_refused_with_what_there_is(paths, formats, id_, words):
    found = refused(paths, formats)
    assert found["id"] == id_
    assert words in found["found"]
    assert found["wanted"]


def test_a_quantisation_that_lacks_parts_is_passed_over_unless_asked_for():
    paths = [*shards("m-Q4_K_M", 3, ".gguf")[:2], "m-Q6_K.gguf"]
    assert select(paths, LLAMA).main == "m-Q6_K.gguf"
    assert refused(paths, LLAMA, "Q4_K_M")["id"] == "snapshot-shards-missing"


def test_remedies_name_an_engine_that_fits():
    assert "llama_cpp" in refused(GGUF, VLLM)["remedy"]
    assert "vllm" in refused(QWEN, LLAMA)["remedy"]
    assert "original/consolidated.00.pth (1.07 GB)" in refused(
        [path for path in LLAMA_33 if not path.endswith(".safetensors")], VLLM)["evidence"]


def test_patterns_add_and_take_away():
    assert "original/tokenizer.model" in chosen(LLAMA_33, allow=["original/tokenizer*"])
    assert "README.md" in chosen(QWEN, allow=["README.md"])
    assert chosen(QWEN, ignore=["*.json", "merges.txt", "LICENSE"]) == shards("model", 4)
    assert "onnx/model.onnx" in chosen(SENTENCES, allow=["onnx/"])
    assert "onnx/model.onnx" not in chosen(SENTENCES, allow=["onnx/"], ignore=["*.onnx"])
    assert refused(QWEN, ignore=["*.safetensors"])["id"] == "snapshot-no-format"


def test_a_format_that_does_not_exist_is_a_mistake():
    with pytest.raises(ValueError, match="onnx"):
        select(QWEN, ("onnx",))


WORDS = st.sampled_from([
    "model", "model-00001-of-00002", "model-00002-of-00002", "consolidated", "m-Q4_K_M", "m-q8_0",
    "m-Q6_K-00001-of-00002", "m-Q6_K-00002-of-00002", "mmproj-F16", "adapter_model", "config",
    "pytorch_model", "tokenizer", "optimizer", "model.fp16"])
FOLDERS = st.sampled_from(["", "", "", "Q8_0/", "original/", "1_Pooling/", "onnx/"])
SUFFIXES = st.sampled_from([".safetensors", ".gguf", ".bin", ".pth", ".json", ".txt", ".py"])
NAMES = st.builds("{}{}{}".format, FOLDERS, WORDS, SUFFIXES) | PATHS


def _paths(paths):
    try:
        return made(paths).entries
    except ValueError:
        return None


@given(st.sets(NAMES, max_size=14).map(sorted).filter(lambda paths: _paths(paths) is not None),
       st.permutations(selection.FORMATS), st.integers(0, 3),
       st.none() | st.sampled_from(["Q4_K_M", "q6_k", "x"]))
def test_any_repository_gives_a_choice_that_holds_or_a_reason(paths, order, count, asked):
    formats = order[:count]
    try:
        found = select(paths, formats, asked)
    except NoChoice as problem:
        assert problem.findings
        assert all(one["id"].startswith("snapshot-") for one in problem.findings)
        return
    names = [entry.path for entry in found.entries]
    assert names == sorted(set(names)) and set(names) <= set(paths)
    assert found.format in formats
    if found.format != "pickle":
        assert not any(name.endswith((".bin", ".pth")) for name in names)
    if found.format == "gguf":
        assert found.main in names
        weights = [name for name in names if name.endswith(".gguf")]
        assert weights[0] == found.main
        assert len(weights) == (2 if "-of-00002" in found.main else 1)
    else:
        assert found.main == ""
        assert not any(name.endswith(".gguf") for name in names)
        assert not asked
    # What was left out is not missed, and the order of a list is no matter.
    assert select(names, formats, asked).entries == found.entries
    whole = made(paths)
    back = whole._replace(entries=whole.entries[::-1])
    assert selection.select(back, formats, asked, (), ())[:4] == found[:4]


def test_a_choice_among_100_000_files_comes_to_an_end():
    # A rule that looks at each pair of them would take hours.
    paths = ["part-%06d-Q%d_K.gguf" % (one, one) for one in range(50_000)]
    paths += ["notes/%06d.txt" % one for one in range(49_000)]
    assert select(paths, LLAMA, "Q4_K", allow=["*"]).main == "part-000004-Q4_K.gguf"
