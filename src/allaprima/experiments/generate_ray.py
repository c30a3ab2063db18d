"""Generation by workers of a Ray cluster, into the folder that one process would make.

Prompts are never all in memory: they are read once, put into words that the card knows, and laid on disk until a worker is
free; the folder's own pictures say what is done. So the folder is what one process makes, to the byte, and either goes on
with the other's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from rich.console import Console

from allaprima.cascade.metadata import ImageRecord, RecordWriter
from allaprima.cascade.request import GenerationRequest
from allaprima.conditioning.prompt_inputs import extra_prompts
from allaprima.core.errors import PromptError, SettingError
from allaprima.experiments.drift_watch import DriftWatch
from allaprima.experiments.generate import NONE, GenerateOptions, loaded, prompt_rows, requests_of, say_word, vocabulary_of
from allaprima.experiments.progress import Bar
from allaprima.experiments.run_folder import RunFolder
from allaprima.experiments.runner import digest, drift_watch, end, identity_of, keep, summary, write_tables
from allaprima.fleet.ray_batch import BatchWork, Item, WorkerConfig, paint
from allaprima.fleet.ray_cluster import connected, load_ray
from allaprima.pipeline import AdaptivePipeline

NOTES = 20
"""Prompts in other words that are told one by one."""
BATCHES = 4
"""Of a chunk."""


class Spool:
    """Everything that is asked for, on disk, in order."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self.pictures, self.digest = file, 0, ""

    def fill(self, o: GenerateOptions, pipe: AdaptivePipeline, console: Console) -> None:
        """Read prompts, find words for them, and lay them down. Raises `PromptError`, `SettingError`."""
        if o.images_per_prompt < 1:
            raise SettingError(f"images_per_prompt={o.images_per_prompt!r} must be at least 1.")
        self.digest = digest(self._laid(o, pipe, console))
        if not self.pictures:
            raise PromptError(NONE)

    def _laid(self, o: GenerateOptions, pipe: AdaptivePipeline, console: Console) -> Iterator[tuple[str, GenerationRequest]]:
        vocabulary, others = vocabulary_of(pipe, o.nearest), 0
        for row in prompt_rows(o):
            word = vocabulary.word(row.prompt)
            others += word.similarity < 1
            if word.similarity < 1 and others <= NOTES:
                say_word(word, console)
            for request in requests_of(row, word.painted, self.pictures, o):
                told = [word.asked, request.prompt, request.negative_prompt, request.seed, extra_prompts(request)]
                self._file.write(json.dumps(told) + "\n")
                self.pictures += 1
                yield word.asked, request
        if others > NOTES:
            console.print(f"[yellow]note:[/] {others - NOTES} more prompts are painted in words that this card knows")

    def items(self) -> Iterator[Item]:
        """Yield requests with the prompts as they were given."""
        self._file.seek(0)
        for index, line in enumerate(self._file):
            asked, prompt, negative, seed, more = json.loads(line)
            yield GenerationRequest(prompt, seed, negative, index, **more), asked


@dataclass
class _Run:
    """A folder that is being filled."""

    folder: RunFolder
    spool: Spool
    watch: DriftWatch | None
    bar: Bar
    there: int = 0
    new: int = 0
    seconds: float = 0.0

    def missing(self) -> Iterator[Item]:
        """Yield what isn't there yet."""
        for item in self.spool.items():
            account = self.folder.done(item[0].index)
            if account is None:
                yield item
                continue
            self.there += 1
            self.bar.passed()
            self._see(account)

    def keep(self, packed: ImageRecord) -> None:
        """Keep a picture that has come."""
        keep(self.folder, packed)
        self.new, self.seconds = self.new + 1, self.seconds + packed.seconds
        self.bar.painted(packed.account)
        self._see(packed.account)

    def _see(self, account: dict[str, Any]) -> None:
        if self.watch is not None:
            self.watch.see(account["index"], account["score"])


def make_pipe(o: GenerateOptions) -> partial[AdaptivePipeline]:
    """How a worker makes the pipeline: from the same card, which must be there under the same name."""
    card = str(Path(o.card).resolve()) if Path(o.card).exists() else o.card
    return partial(AdaptivePipeline.from_card, card, device_config=o.device_config)


def hands_of(o: GenerateOptions, batch_size: int) -> WorkerConfig:
    """So many workers; each has a GPU if networks are to run on one, and as many CPUs as torch has threads here."""
    gpu = str(o.device_config.device or "").startswith("cuda")
    return WorkerConfig(o.workers, BATCHES * batch_size, float(torch.get_num_threads()), 1.0 if gpu else 0.0)


def generate_on_ray(o: GenerateOptions) -> None:
    """Paint what isn't there yet, and write tables and the contact sheet at the end."""
    console = Console(stderr=True, highlight=False)
    if o.steer:
        raise SettingError("--steer decides picture by picture in their order, which workers don't keep: leave it out.")
    load_ray()
    pipe, settings, policy = loaded(o, console)
    hands = hands_of(o, settings.batch_size)
    prints, said = pipe.fingerprints(), o.device_config.to_dict()
    pack = RecordWriter(o.card, o.mode, prints, policy, {"placement": said} if said else {})
    with tempfile.TemporaryFile("w+", encoding="utf-8") as file:
        spool = Spool(file)
        spool.fill(o, pipe, console)
        folder = RunFolder(o.out)
        folder.claim(identity_of(pipe, policy, settings, o, spool.pictures, spool.digest), o.resume)
        watch = drift_watch(pipe, policy, o, console)
        work = BatchWork(make_pipe(o), settings, policy, pack, prints, torch.get_num_threads())
        failed: dict[int, dict[str, Any]] = {}
        places = o.workers * hands.cpus, o.workers * hands.gpus
        with Bar(console, spool.pictures) as bar:
            run = _Run(folder, spool, watch, bar)
            with connected(o.ray_address, *places):
                for packed in paint(work, run.missing(), hands):
                    run.keep(packed)
                    if packed.image is None:
                        failed[packed.account["index"]] = packed.account
    if run.there:
        console.print(f"{run.there} of {spool.pictures} pictures were there already")
    accounts = (failed.get(i) or folder.done(i) for i in range(spool.pictures))
    totals = write_tables(folder, (a for a in accounts if a is not None), settings, console)
    summary(console, o, totals, run.seconds, run.new)
    if watch is not None:
        watch.say()
    end(totals)
