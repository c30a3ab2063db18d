"""Tokenizers that several threads may call: their calls wait for each other.

A fast tokenizer of transformers' keeps padding and truncation as a state of its Rust half and sets it anew in every call
that wants another. Two threads, one that counts a prompt's tokens and one that pads prompts for the networks, get each
other's setting: some 5 in 1,000 calls came back with another length, in silence. A server does just that.
"""

from __future__ import annotations

import functools
import threading
from typing import Any


def one_at_a_time(tokenizer: Any) -> Any:
    """The same tokenizer, safe to call from several threads. It stays an instance of its class; again changes nothing."""
    if not getattr(type(tokenizer), "calls_wait", False):
        tokenizer.__class__ = _waiting(type(tokenizer))
    return tokenizer


@functools.cache
def _waiting(kind: type) -> type:
    """A class of the same name, for that is what tokenizers write into their folders; its instances share a lock."""
    lock = threading.RLock()

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with lock:
            return kind.__call__(self, *args, **kwargs)

    def reduce(self: Any, protocol: Any) -> Any:
        # This class can't be found by its name: the plain tokenizer is copied or pickled, and made to wait again.
        return _again, (kind, vars(self))

    body = {"__call__": call, "__reduce_ex__": reduce, "calls_wait": True}
    return type(kind.__name__, (kind,), {**body, "__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _again(kind: type, state: dict[str, Any]) -> Any:
    tokenizer: Any = object.__new__(kind)
    vars(tokenizer).update(state)
    return one_at_a_time(tokenizer)
