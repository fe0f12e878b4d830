"""`CompletionRequest`: what a body of `/v1/completions` or `/v1/chat/completions` asks. Pure.

Fields that vLLM adds (`top_k`, `min_p`, `repetition_penalty`, `ignore_eos`, `min_tokens`,
`stop_token_ids`, `priority`) are read as there, but for `priority`, which is the one of our other
doors: 1 is the highest. `slo` and `min_quality` are ours. Fields that nobody knows are ignored, as
vLLM does: clients send many. What would change the answer and is not served is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.models.served_decoder import TextWishes
from serve.models.stream_terms import SloWishes
from serve.openai.body_fields import BodyFields
from serve.openai.error_object import FieldError
from serve.proto.names import LOWEST_PRIORITY
from subnetact.decoding.sampling_params import SamplingParams

Message = dict[str, str]
Prompt = str | tuple[int, ...]

MOST_TOKENS = 2**31
DEFAULT_TOKENS = 16  # of a completion that does not say, as OpenAI's
_MOST_STOPS = 16
_MOST_STOP_CHARACTERS = 512
_MOST_MESSAGES = 4096
_MOST_BIASES = 1024
_MOST_ALTERNATIVES = 20
_MOST_PROMPTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One request: texts, ids of their tokens, or a chat; and how what follows is wanted.

    Each of `prompts` is continued by itself; of a chat there is one, which is empty.
    """

    model: str
    wishes: TextWishes
    prompts: tuple[Prompt, ...] = ("",)
    messages: tuple[Message, ...] = ()
    streams: bool = False
    includes_usage: bool = False
    usage_in_each: bool = False

    @property
    def is_chat(self) -> bool:
        """Whether it continues a chat, not a text."""
        return bool(self.messages)

    @property
    def logprobs(self) -> int | None:
        """Of how many alternatives log-probabilities are wanted; None: of nothing."""
        return self.wishes.sampling.logprobs


def read_messages(values: Mapping[str, Any]) -> tuple[Message, ...]:
    """Return the chat of a request. Raises FieldError."""
    return _messages(BodyFields(values))


def refuse_other_prompts(values: Mapping[str, Any], *, is_chat: bool) -> None:
    """Raise FieldError where a prompt is to be made otherwise than ours are."""
    fields = BodyFields(values)
    _refuse(fields, _OTHER_PROMPTS)
    for name, always in (("add_generation_prompt", True), ("add_special_tokens", not is_chat)):
        if fields.flag(name, always) != always:
            text = f"{name} {str(not always).lower()} is not served: the tokenizer and its chat"
            raise fields.unsupported(name, f"{text} template say how a prompt begins and ends")


def parse_completion(values: Any, *, is_chat: bool, vocab_size: int) -> CompletionRequest:
    """Read the JSON of a body. Raises FieldError (a RefusedError) that names the field."""
    if not isinstance(values, dict):
        raise FieldError("", "the request is not a JSON object")
    fields = BodyFields(values)
    _refuse_unserved(fields)
    refuse_other_prompts(values, is_chat=is_chat)
    model = fields.text("model")
    if not model:
        raise FieldError("model", "model is missing: name one of GET /v1/models")
    options = fields.inner("stream_options")
    streams = fields.flag("stream")
    return CompletionRequest(
        model=model,
        prompts=("",) if is_chat else _prompts(fields, vocab_size),
        messages=_messages(fields) if is_chat else (),
        wishes=_wishes(fields, is_chat=is_chat, vocab_size=vocab_size),
        streams=streams,
        includes_usage=streams and options.flag("include_usage"),
        usage_in_each=streams and options.flag("continuous_usage_stats"),
    )


_UNSERVED = {
    "tools": "tools are not served: these models call none",
    "functions": "functions are not served: these models call none",
    "suffix": "suffix is not served: these models fill no gaps",
    "echo": "echo is not served: the prompt is known where it is",
    "audio": "audio is not served, text is",
    "guided_json": "guided_json is not served: ask for JSON in the prompt",
    "guided_regex": "guided_regex is not served",
    "guided_choice": "guided_choice is not served",
    "guided_grammar": "guided_grammar is not served",
    "structured_outputs": "structured_outputs is not served: ask for the form in the prompt",
    "use_beam_search": "use_beam_search is not served: tokens are taken or drawn one by one",
    "allowed_token_ids": "allowed_token_ids is not served, logit_bias is",
    "bad_words": "bad_words is not served, logit_bias is",
    "logits_processors": "logits_processors are not served, logit_bias is",
    "include_stop_str_in_output": "include_stop_str_in_output is not served: texts end before it",
    "prompt_embeds": "prompt_embeds is not served, texts and token ids are",
    "return_token_ids": "return_token_ids is not served: POST /tokenize has those of a text",
    "return_tokens_as_token_ids": "return_tokens_as_token_ids is not served, logprobs are",
    "web_search_options": "web_search_options is not served: these models search nothing",
}
"""What would change the answer, by field; empty, false and null ask for nothing."""

_OTHER_PROMPTS = {
    "documents": "documents is not served: put their text into a message",
    "chat_template": "chat_template is not served: the checkpoint's own is",
    "chat_template_kwargs": "chat_template_kwargs is not served: a template gets messages alone",
    "continue_final_message": "continue_final_message is not served: /v1/completions continues "
    "any text",
}
"""What would make another prompt, by field, likewise."""


def _refuse(fields: BodyFields, unserved: Mapping[str, str]) -> None:
    for name, text in unserved.items():
        if fields.get(name):
            raise fields.unsupported(name, text)


def _refuse_unserved(fields: BodyFields) -> None:
    for name in ("n", "best_of"):
        if fields.whole(name, 1, 1, 128) != 1:
            text = f"{name} above 1 is not served: send one request for each text"
            raise fields.unsupported(name, text)
    _refuse(fields, _UNSERVED)
    for name in ("prompt_logprobs", "truncate_prompt_tokens"):
        if fields.get(name) is not None:  # 0 and -1 ask for something, too
            raise fields.unsupported(name, f"{name} is not served: prompts are read as they are")
    if not fields.flag("skip_special_tokens", True):
        text = "skip_special_tokens false is not served: they leave no trace in a text"
        raise fields.unsupported("skip_special_tokens", text)
    if fields.get("tool_choice") not in (None, "none", "auto"):
        raise fields.unsupported("tool_choice", "tool_choice is not served: there are no tools")
    if fields.inner("response_format").get("type") not in (None, "text"):
        text = "response_format is not served but for text: ask for JSON in the prompt"
        raise fields.unsupported("response_format", text)


def _prompts(fields: BodyFields, vocab_size: int) -> tuple[Prompt, ...]:
    """Return the prompts: one of a text or of token ids, several of a list of such."""
    value = fields.get("prompt")
    if not isinstance(value, list) or not value or not isinstance(value[0], str | list):
        return (_prompt(fields, value, vocab_size),)
    if len(value) > _MOST_PROMPTS:
        text = f"prompt is a list of {len(value)} prompts, allowed {_MOST_PROMPTS}"
        raise FieldError("prompt", text)
    return tuple(_prompt(fields, each, vocab_size) for each in value)


def _prompt(fields: BodyFields, value: Any, vocab_size: int) -> Prompt:
    if isinstance(value, str):
        if not value:
            raise fields.bad("prompt", "a text of one token or more")
        return value
    if isinstance(value, list) and value and all(type(i) is int for i in value):
        if min(value) < 0 or max(value) >= vocab_size:
            wrong = next(i for i in value if not 0 <= i < vocab_size)
            text = f"prompt has token {wrong}, allowed 0 to {vocab_size - 1}"
            raise FieldError("prompt", text)
        return tuple(value)
    raise fields.bad("prompt", "a text, a list of token ids, or a list of such")


def _messages(fields: BodyFields) -> tuple[Message, ...]:
    value = fields.get("messages")
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_MESSAGES:
        raise fields.bad("messages", f"a list of 1 to {_MOST_MESSAGES} messages")
    return tuple(_message(each, f"messages[{i}]") for i, each in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise FieldError(where, f"{where} is no object with role and content")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not role:
        raise FieldError(f"{where}.role", f"{where}.role is missing: system, user or assistant")
    if value.get("tool_calls"):
        text = "tool_calls are not served: these models call none"
        raise FieldError(f"{where}.tool_calls", text, "unsupported")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, list):
        content = "".join(_part(each, f"{where}.content[{i}]") for i, each in enumerate(content))
    if not isinstance(content, str):
        text = f"{where}.content is neither a text nor a list of such"
        raise FieldError(f"{where}.content", text)
    return {"role": role, "content": content}


def _part(value: Any, where: str) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text" and isinstance(value.get("text"), str):
        return value["text"]
    if kind in ("image_url", "input_audio", "file", "video_url"):
        raise FieldError(where, f"{where}: {kind} is not served, text is", "unsupported")
    raise FieldError(where, f"{where} is no part of type text")


def _wishes(fields: BodyFields, *, is_chat: bool, vocab_size: int) -> TextWishes:
    max_tokens = fields.maybe_whole("max_completion_tokens", 1, MOST_TOKENS) if is_chat else None
    if max_tokens is None:
        max_tokens = fields.maybe_whole("max_tokens", 1, MOST_TOKENS)
    if max_tokens is None and not is_chat:
        max_tokens = DEFAULT_TOKENS
    min_tokens = fields.whole("min_tokens", 0, 0, MOST_TOKENS)
    if max_tokens is not None and min_tokens > max_tokens:
        raise fields.bad("min_tokens", f"up to max_tokens, {max_tokens}")
    stop, stop_ids = _stop(fields), fields.get("stop_token_ids")
    slo = fields.inner("slo")
    return TextWishes(
        max_tokens=max_tokens,
        stop=stop,
        stop_token_ids=() if stop_ids is None else _token_ids(fields, stop_ids, vocab_size),
        ignore_eos=fields.flag("ignore_eos"),
        sampling=_sampling(fields, min_tokens, is_chat=is_chat, vocab_size=vocab_size),
        seed=fields.maybe_whole("seed", -(2**63), 2**64 - 1),
        slo=SloWishes(*(slo.maybe_number(n, 0.0) for n in ("ttft_ms", "tpot_ms", "e2e_ms"))),
        min_quality=fields.number("min_quality", 0.0, 0.0, 1.0),
        priority=fields.whole("priority", 0, 0, LOWEST_PRIORITY),
    )


def _stop(fields: BodyFields) -> tuple[str, ...]:
    value = fields.get("stop")
    stops = [value] if isinstance(value, str) else value or []
    is_list = isinstance(stops, list) and len(stops) <= _MOST_STOPS
    if not is_list or not all(
        isinstance(s, str) and 0 < len(s) <= _MOST_STOP_CHARACTERS for s in stops
    ):
        allowed = f"up to {_MOST_STOPS} strings of 1 to {_MOST_STOP_CHARACTERS} characters"
        raise fields.bad("stop", allowed)
    return tuple(stops)


def _token_ids(fields: BodyFields, value: Any, vocab_size: int) -> tuple[int, ...]:
    is_list = isinstance(value, list) and len(value) <= _MOST_BIASES
    if not is_list or not all(type(i) is int and 0 <= i < vocab_size for i in value):
        raise fields.bad("stop_token_ids", f"a list of token ids, 0 to {vocab_size - 1}")
    return tuple(value)


def _sampling(
    fields: BodyFields, min_tokens: int, *, is_chat: bool, vocab_size: int
) -> SamplingParams:
    return SamplingParams(
        temperature=fields.number("temperature", 1.0, 0.0, 100.0),
        top_p=_above_zero(fields, "top_p", 1.0, 1.0),
        top_k=max(0, fields.whole("top_k", 0, -1, MOST_TOKENS)),
        min_p=fields.number("min_p", 0.0, 0.0, 1.0),
        presence_penalty=fields.number("presence_penalty", 0.0, -2.0, 2.0),
        frequency_penalty=fields.number("frequency_penalty", 0.0, -2.0, 2.0),
        repetition_penalty=_above_zero(fields, "repetition_penalty", 1.0, 100.0),
        logit_bias=_biases(fields, vocab_size),
        min_tokens=min_tokens,
        logprobs=_logprobs(fields, is_chat=is_chat),
    )


def _above_zero(fields: BodyFields, name: str, default: float, high: float) -> float:
    value = fields.number(name, default, 0.0, high)
    if value == 0:
        raise fields.bad(name, f"a number above 0 and up to {high:g}")
    return value


def _logprobs(fields: BodyFields, *, is_chat: bool) -> int | None:
    if not is_chat:
        return fields.maybe_whole("logprobs", 0, _MOST_ALTERNATIVES)
    count = fields.maybe_whole("top_logprobs", 0, _MOST_ALTERNATIVES)
    if fields.flag("logprobs"):
        return count or 0
    if count:
        raise fields.bad("top_logprobs", "with logprobs true only")
    return None


def _biases(fields: BodyFields, vocab_size: int) -> Mapping[int, float]:
    given = fields.inner("logit_bias")
    if len(given.values) > _MOST_BIASES:
        raise FieldError("logit_bias", f"logit_bias has more than {_MOST_BIASES} tokens")
    biases: dict[int, float] = {}
    for name in given.values:
        is_id = name.isascii() and name.isdigit() and len(name) < 12 and int(name) < vocab_size
        if not is_id:
            text = f"logit_bias names token {name!r:.40}, allowed 0 to {vocab_size - 1}"
            raise FieldError("logit_bias", text)
        biases[int(name)] = given.number(name, 0.0, -100.0, 100.0)
    return biases
