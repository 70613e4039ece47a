"""One text: its tokens so far, its end, and what of it is new. What the engines have in common."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from wire.inputs import TextInputs
from wire.text import FinishReason, TextPrompt, TokenLogprob, TokenOutput
from worker.engine import TaskError
from worker.engines.text.grammar import Grammar
from worker.engines.text.stop_texts import StopTexts
from worker.engines.text.tokenization import Tokenization


class Generation:
    """A text that grows by tokens. What it reports follows from the prompt and the tokens alone.

    It continues after the tokens `done`, of which it reports none again.
    """

    def __init__(
        self,
        tokenization: Tokenization,
        inputs: TextInputs,
        prompt: TextPrompt,
        done: Sequence[int],
        context_length: int,
        *,
        has_grammars: bool = True,
    ) -> None:
        """Raises `TaskError` for tokens or a prompt that the model does not take, or a prompt that fills its context.

        `has_grammars`: the engine masks tokens by `grammar`. Without, texts that must match one are refused.
        """
        # The load balancer knows the vocabulary only once a worker has connected.
        tokenization.check_tokens("stop_token_ids", inputs.stop_token_ids)
        tokenization.check_tokens("logit_bias", (token for token, _ in inputs.sampling.logit_bias))
        encoded = tokenization.encode_prompt(prompt, context_length)
        self.prompt = list(encoded.tokens)
        #: Maximum number of generated tokens.
        self.limit = min(inputs.max_tokens, context_length - len(self.prompt))
        self.tokens: list[int] = []
        self.is_finished = False
        #: What the text must match; None: anything.
        self.grammar = tokenization.structured_output.grammar(inputs, prompt, opens_reasoning=encoded.opens_reasoning)
        if self.grammar is not None and not has_grammars:
            _check_is_free(self.grammar)
            self.grammar = None
        self._inputs, self._tokenization = inputs, tokenization
        self._eos = frozenset[int]() if inputs.ignore_eos else tokenization.eos_ids
        special = {stop: tokenization.special_id(stop) for stop in inputs.stop}
        self._stop_ids: dict[int, str | int] = {token: token for token in inputs.stop_token_ids}
        self._stop_ids |= {token: stop for stop, token in special.items() if token is not None}
        self._ends = tokenization.eos_ids | set(self._stop_ids)
        self._detokenizer = tokenization.detokenizer(self.prompt)
        self._stops = StopTexts(inputs.stop)
        self._finish: FinishReason = ""
        self._stop_reason: str | int | None = None
        self._clear()
        for token in done:
            if not self.is_finished:
                self.accept(token)
        self.tokens, self._is_new = list(done), True
        if len(done) >= self.limit and not self.is_finished:  # of a worker with a longer context
            self._finish, self.is_finished = "length", True
        self._clear()
        if encoded.opens_reasoning and not done and tokenization.reasoning is not None:
            # Whoever reads the text knows its reasoning by both markers, wherever the prompt ends.
            self._text = tokenization.reasoning.begin

    @property
    def forbidden(self) -> Collection[int]:
        """Tokens that must not come next: those that end the text, while it has not its minimum length.

        A grammar decides itself where its text ends. That of a free text would end it at an end token without effect,
        and may need a stop token within a tool call.
        """
        is_short = len(self.tokens) < self._inputs.min_tokens
        if self.grammar is None:
            return self._ends if is_short else ()
        if not self.grammar.is_free or not (is_short or self._inputs.ignore_eos):
            return ()
        return self._tokenization.eos_ids - (set() if is_short else self._stop_ids.keys())

    def accept(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Take in the next token. The text may be finished then, and takes no more."""
        if self.is_finished:
            raise RuntimeError("the text is finished")
        self.tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        if token in self._eos:
            self._end("stop", self._detokenizer.flush())
        elif token in self._stop_ids and len(self.tokens) > self._inputs.min_tokens:
            self._end("stop", self._detokenizer.flush(), self._stop_ids[token])
        else:
            if self.grammar is not None:
                self.grammar.accept(token)
            self._accept_text(self._detokenizer.accept(token))

    def take(self, cached_tokens: int = 0) -> TokenOutput | None:
        """Remove and return what is new since the last call; None for nothing.

        `cached_tokens`: those of the prompt that were not computed. They are part of the first output.
        """
        if self._start == len(self.tokens) and not (self._is_new and self.is_finished):
            return None
        is_first, self._is_new = self._is_new, False
        output = TokenOutput(
            self._start,
            self.tokens[self._start :],
            self._text,
            self._finish,
            self._logprobs,
            prompt_tokens=len(self.prompt) if is_first else 0,
            cached_tokens=cached_tokens if is_first else 0,
            stop_reason=self._stop_reason,
        )
        self._clear()
        return output

    def _accept_text(self, piece: str) -> None:
        text, stop = piece, None
        if len(self.tokens) >= self._inputs.min_tokens:
            text, stop = self._stops.accept(piece)
        self._text += text
        if stop is not None:
            self._finish, self._stop_reason, self.is_finished = "stop", stop, True
        elif self.grammar is not None and self.grammar.is_complete:
            self._end("stop", self._detokenizer.flush())
        elif len(self.tokens) >= self.limit:
            self._end("length", self._detokenizer.flush())

    def _end(self, finish: FinishReason, piece: str, reason: str | int | None = None) -> None:
        """End the text with what was held back. A stop text in it ends it before."""
        text, stop = self._stops.accept(piece)
        self._text += text + (self._stops.flush() if stop is None else "")
        self._finish, self._stop_reason = finish, reason
        if stop is not None:
            self._finish, self._stop_reason = "stop", stop
        self.is_finished = True

    def _clear(self) -> None:
        """Forget what was reported."""
        self._start, self._text = len(self.tokens), ""
        self._logprobs: list[TokenLogprob] = []


def _check_is_free(grammar: Grammar) -> None:
    """Raises `TaskError` for a text that cannot do without its grammar."""
    if not grammar.is_free:
        problem = "this engine has neither structured output nor forced tool calls; the engines text and vllm have them"
        raise TaskError("invalid", problem, 400)
