"""A small tokenizer.json with Llama-2's shape: the ids that OpenVLA relies on, in kilobytes
instead of megabytes.

Words of the prompt have their real Llama-2 ids, so do "▁" and the bytes; words of common
instructions are one token each, anything else is spelled in characters or, failing that, bytes.
For checkpoints that never saw real Llama weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vla_oft_ros.model.tokens import BOS_ID, EMPTY_ID, PAD_ID, STOP_ID

# Real Llama-2 ids of the prompt template (recorded from the official processor).
TEMPLATE_IDS = {
    "▁In": 512,
    ":": 29901,
    "▁What": 1724,
    "▁action": 3158,
    "▁should": 881,
    "▁the": 278,
    "▁robot": 19964,
    "▁take": 2125,
    "▁to": 304,
    "?": 29973,
    "Out": 3744,
}
SPACE = "▁"
CHARACTERS = "etainorslhduycmpgfbwvkxzjq0123456789-,.'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = (
    "and arm arms away back bag ball basket black blue bottle bowl box bread close cloth corn "
    "cube cup door down drawer eggplant fold from front grab green grasp hand hold in insert "
    "into it left lift move new of on onto open over peg pen pepper pick place plate pot pour "
    "pull push put raisins red right scoop shirt shorts slot socket spoon stack table them "
    "tomato top towel transfer turn up white with wipe yellow zip"
).split()
FIRST_BYTE_ID = 3
FIRST_FREE_ID = FIRST_BYTE_ID + 256


def write_small_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    _write(directory / "tokenizer.json", small_tokenizer())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<PAD>"}
    _write(directory / "special_tokens_map.json", special)
    _write(
        directory / "tokenizer_config.json",
        {
            **special,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": True,
            "model_max_length": 2048,
            "padding_side": "right",
            "processor_class": "PrismaticProcessor",
            "tokenizer_class": "LlamaTokenizer",
        },
    )


def small_tokenizer() -> dict[str, Any]:
    """Content of tokenizer.json: byte-pair encoding whose merges build each known word from its
    left end.
    """
    vocab = {"<unk>": 0, "<s>": BOS_ID, "</s>": STOP_ID, SPACE: EMPTY_ID}
    vocab |= {f"<0x{byte:02X}>": FIRST_BYTE_ID + byte for byte in range(256)}
    vocab |= TEMPLATE_IDS
    taken = set(vocab.values())
    free = (i for i in range(FIRST_FREE_ID, EMPTY_ID) if i not in taken)
    merges: dict[tuple[str, str], None] = {}
    for character in CHARACTERS:
        vocab.setdefault(character, next(free))
    for word in (*TEMPLATE_IDS, *(SPACE + word for word in WORDS)):
        for end in range(2, len(word) + 1):
            vocab.setdefault(word[:end], next(free))
            # A prefix and one character: no two merges compete, so their order does not matter.
            merges[(word[: end - 1], word[end - 1])] = None
    special = {0: "<unk>", BOS_ID: "<s>", STOP_ID: "</s>", PAD_ID: "<PAD>"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index, content in special.items()
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<s>", "type_id": 1}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS_ID], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(merge) for merge in merges],
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
