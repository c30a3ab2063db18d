"""VQAScore by a chat endpoint (arXiv 2404.01291): ask a model that sees the picture, take the probability of "yes".

    score = P("yes" | picture, 'Does this figure show "{prompt}"? Please answer yes or no.')

The endpoint speaks OpenAI's chat API and must return log-probabilities of the first token (vLLM, SGLang and OpenAI do). The
paper's numbers are made with CLIP-FlanT5; another model has another scale. What can go wrong on the way is tried again, then
costs the one picture its score, not the batch.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import math
import os
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from allaprima.core.errors import ModelError, SettingError
from allaprima.data.images import to_pil
from allaprima.oracles.settings import VQASettings

LONGEST_ANSWER = 1 << 20
"""Bytes that are read of an answer: one token with its log-probabilities has some thousand."""
LONGEST_WAIT = 60.0
"""Seconds that an endpoint's `Retry-After` is heeded."""
AGAIN = {408, 409, 425, 429}
"""Statuses that are tried again, beside 5xx."""


class _TryAgain(Exception):
    """This try gave no score; the next may."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key and the picture to another host."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class VQAOracle:
    """Probability in [0, 1] that an endpoint's model answers yes; behind the oracle protocol."""

    name = "vqa"

    def __init__(self, settings: VQASettings) -> None:
        """Connect to an endpoint.

        Raises `SettingError` for a question without `{prompt}` or a key that isn't in the environment.
        """
        if "{prompt}" not in settings.question:
            raise SettingError(
                f"oracle.settings.question = {settings.question!r} has no {{prompt}}: nothing would be asked."
            )
        if settings.key_env is not None and not os.environ.get(settings.key_env):
            raise SettingError(
                f"oracle.settings.key_env names {settings.key_env!r}, which is not set: export it, or leave it out."
            )
        self.settings, self.cost = settings, settings.cost
        # Which weights answer isn't known from here: the endpoint's name of the model stands for them.
        said = json.dumps(["vqa", settings.scoring()], sort_keys=True)
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()[:16]
        self._opener = urllib.request.build_opener(_NoRedirects)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """`(B, 3, H, W)` in [0, 1] with prompts -> `(B,)` on the pictures' device.

        The same picture with the same prompt is asked about once. Raises `ModelError` where trying again is pointless (a key
        that is refused, an address or model that isn't there, no log-probabilities), or with `failure: raise` in the end.
        """
        if len(images) != len(prompts):
            raise SettingError(f"{len(images)} pictures with {len(prompts)} prompts: a prompt a picture is due.")
        # The machine pads batches with copies; a picture of no numbers has nothing to show.
        sound = [bool(image.isfinite().all()) for image in images]
        keys = [(_data_url(x), p) if ok else None for x, p, ok in zip(images, prompts, sound, strict=True)]
        asked = list(dict.fromkeys(k for k in keys if k is not None))
        with ThreadPoolExecutor(max_workers=min(self.settings.concurrency, max(len(asked), 1))) as pool:
            futures = [pool.submit(self._asked, *k) for k in asked]
            try:
                answers: dict[Any, float | str] = {k: f.result() for k, f in zip(asked, futures, strict=True)}
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        failed = [a for a in answers.values() if isinstance(a, str)]
        if failed:
            said = f"{self.settings.url} gave no score for {len(failed)} of {len(asked)} pictures: {failed[0]}"
            if self.settings.failure == "raise":
                raise ModelError(f"{said}. Mend the endpoint, or raise oracle.settings.retries or timeout.")
            warnings.warn(f"{said}. They score nan.", UserWarning, stacklevel=2)
        scores = [answers[k] if k is not None else math.nan for k in keys]
        return torch.tensor([math.nan if isinstance(s, str) else s for s in scores], device=images.device)

    def _asked(self, picture: str, prompt: str) -> float | str:
        """P(yes), or why there is none after all tries."""
        s, why = self.settings, ""
        for n in range(s.retries + 1):
            try:
                return yes_probability(self._post(_question(s, picture, prompt)), s.answer)
            except _TryAgain as e:
                why = str(e)
                if n < s.retries:
                    time.sleep(max(s.backoff * 2**n, e.wait or 0.0))
        return why

    def _post(self, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.settings.key_env is not None:
            headers["Authorization"] = f"Bearer {os.environ.get(self.settings.key_env, '')}"
        address = self.settings.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(request, timeout=self.settings.timeout) as answer:
                raw = answer.read(LONGEST_ANSWER + 1)
        except urllib.error.HTTPError as e:
            with e:
                said = e.read(300).decode("utf-8", "replace")
            if e.code in AGAIN or e.code >= 500:
                raise _TryAgain(f"status {e.code}", _retry_after(e.headers.get("Retry-After"))) from e
            raise ModelError(f"{address} answered {e.code}: {said!r}. Check oracle.settings: url, model and key_env.") from e
        except (OSError, http.client.HTTPException) as e:
            raise _TryAgain(f"{type(e).__name__}: {e}") from e
        if len(raw) > LONGEST_ANSWER:
            raise _TryAgain(f"an answer of more than {LONGEST_ANSWER} bytes")
        try:
            return json.loads(raw)
        except (ValueError, UnicodeDecodeError) as e:
            raise _TryAgain(f"no JSON: {raw[:60]!r}") from e


def _data_url(image: Tensor) -> str:
    """Return a picture as a PNG within a URL: what was painted, to the bit."""
    held = io.BytesIO()
    to_pil(image.detach().float().cpu()).save(held, "PNG")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def _question(s: VQASettings, picture: str, prompt: str) -> dict[str, Any]:
    # Not `format`: prompts and questions may hold braces.
    text = s.question.replace("{prompt}", prompt)
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
    return {
        "model": s.model, "messages": [{"role": "user", "content": content}], "max_tokens": 1, "temperature": 0,
        "logprobs": True, "top_logprobs": s.top_logprobs,
    }  # fmt: skip


def yes_probability(answer: Any, form: str = "yes") -> float:
    """P(yes) of a chat completion's first token: all ways of writing it together ("Yes", " yes", ...).

    A word that isn't among the likeliest has a probability below the least of them, and counts as 0. Raises `_TryAgain`
    for an answer without usable log-probabilities or one that is neither yes nor no, `ModelError` where there are none.
    """
    try:
        choice = answer["choices"][0]
        logprobs = choice.get("logprobs")
    except (TypeError, KeyError, IndexError, AttributeError) as e:
        raise _TryAgain(f"no chat completion: {str(answer)[:80]!r}") from e
    if logprobs is None:
        raise ModelError("the endpoint gives no log-probabilities, so there is no P(yes): use a server and model that do.")
    found = {"yes": 0.0, "no": 0.0}
    try:
        for row in logprobs["content"][0]["top_logprobs"]:
            word = str(row["token"]).replace("Ġ", "").replace("▁", "").strip().strip("\"'.,!").lower()
            if word in found:
                value = float(row["logprob"])
                if not value <= 1e-6:
                    raise ValueError(f"a log-probability of {value}")
                found[word] += math.exp(value)
    except (TypeError, KeyError, IndexError, ValueError, AttributeError) as e:
        raise _TryAgain(f"log-probabilities that make no sense: {e!r}") from e
    total = found["yes"] + found["no"]
    if total == 0:
        raise _TryAgain("neither yes nor no is among the likeliest answers")
    return min(found["yes"] / total if form == "yes_or_no" else found["yes"], 1.0)


def _retry_after(said: str | None) -> float | None:
    try:
        return None if said is None else min(max(float(said), 0.0), LONGEST_WAIT)
    except ValueError:
        return None
