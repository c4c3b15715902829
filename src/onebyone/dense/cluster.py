"""Scans on many processes and machines, with Dask.

Every worker gets the network once, as a plugin that the scheduler also installs on workers that join later. It opens
the image itself, and stores its blocks itself, in the folder of the scan, which all workers must see. A task is a few
groups of blocks. At most `AHEAD` tasks for each worker wait, so a long scan does not fill the scheduler. The process
that started the scan marks the blocks of finished tasks; the task of a worker that is lost is done again by another.

A worker of n threads keeps n cores busy, so that as many workers as cores share a machine without disturbing each
other. It therefore reads ahead in a thread of its own only where that thread would mostly wait, or the network runs on
another device. Blocks are always written by a thread of their own, which mostly waits until they are on disk. A task
whose last blocks are being written leaves its place to the next one, so that the network runs meanwhile; one task of a
worker at a time does so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any, TypeVar
from uuid import uuid4

import torch

from onebyone.dense.blocks import Block
from onebyone.dense.executor import LocalExecutor
from onebyone.dense.guarded_source import place
from onebyone.dense.images import open_image
from onebyone.dense.plan import Tile
from onebyone.dense.stored_scan import Done, compute
from onebyone.dense.timed_source import TimedSource
from onebyone.dense.work import ScanWork
from onebyone.errors import BadInput, MissingExtra, Unfinished
from onebyone.stores.file_sink import SharedBlocks
from onebyone.stores.source import ImageSource

#: Tasks of each worker that are not done: one is written, one is computed, and one waits.
AHEAD = 3
#: The largest number of groups of blocks in a task, and the parts into which what is left for a worker is cut. Tasks
#: become shorter towards the end, so that all workers end at nearly the same time.
GROUPS, PARTS = 4, 4

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: The start of torch's warning of its own tree specs, when a worker unpickles a graph (a filter holds no comma).
_UNPICKLING = "ignore:`isinstance(treespec:FutureWarning"
#: Dask's setting of the environment in which a worker process starts.
_ENVIRONMENT = "distributed.nanny.pre-spawn-environ"
#: Dask's measurements of its workers, which nobody sees here, and which take a tenth of a core from each.
_UNSEEN = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "1s",
}


@dataclass(frozen=True)
class ImageRequest:
    """An image that each worker opens: a path, or a source that can be pickled, with the options of `open_image`."""

    image: Any
    options: Mapping[str, Any]

    def open(self) -> ImageSource:
        """The image."""
        return open_image(self.image, **self.options)


@dataclass
class ScanPlugin:
    """A scan on one worker: the network and the image are opened when the first task needs them."""

    work: ScanWork
    image: ImageRequest
    blocks: SharedBlocks
    name: str = field(default_factory=lambda: f"onebyone-scan-{uuid4().hex}")
    idempotent: bool = True

    def setup(self, worker: Any) -> None:
        """Called by Dask on each worker."""
        self._threads = int(worker.state.nthreads)
        self._opened: tuple[Any, TimedSource] | None = None
        self._closing = ExitStack()
        self._computing, self._writing = Lock(), Lock()

    def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker ends."""
        self._closing.close()

    def run(self, groups: list[list[Tile]]) -> Done:
        """Compute and store some groups of blocks, on a thread of the worker.

        One task at a time computes, whatever the number of the worker's threads: the network may not run twice at the
        same time, the image may not be read twice at the same time, and the network uses all of these threads.
        """
        from distributed import secede

        with ExitStack() as until_written, ExitStack() as until_computed:
            until_computed.enter_context(self._computing)

            def leave() -> None:
                until_written.enter_context(self._writing)  # the disk sets the pace where it is the slowest
                until_computed.close()
                secede()

            return self._compute(groups, leave)

    def _compute(self, groups: list[list[Tile]], computed: Callable[[], None]) -> Done:
        torch.set_num_threads(self._threads)  # each task may have a thread of its own
        if self._opened is None:
            self._opened = self._closing.enter_context(self.work.runner()), TimedSource(self.image.open())
        run, source = self._opened
        stored: list[Block] = []
        peaks = [0.0]
        sink = self.blocks.open(stored.append)
        ahead = self.work.settings.device.type != "cpu" or source.waits
        executor = LocalExecutor(prefetch=ahead, write_behind=True)
        failures: dict[Block, tuple[str, str]] = {}
        for part in compute(self.work, run, source, sink, peaks.append, groups, executor, computed):
            failures.update(part.failures)
        return Done(sum(map(len, groups)), failures, tuple(stored), max(peaks))


def compute_on_cluster(
    client: Any, work: ScanWork, image: ImageRequest, blocks: SharedBlocks, groups: Iterable[list[Tile]]
) -> Iterator[Done]:
    """Compute groups of blocks on the workers of a `distributed.Client`. Yields what each task did, in any order.

    Raises what a task raised, such as BadInput for a full disk. A task whose workers died again and again is reported
    as a failure of its blocks.
    """
    from distributed import KilledWorker, as_completed
    from distributed.diagnostics.plugin import WorkerPlugin

    plugin_type = type("ScanWorkerPlugin", (ScanPlugin, WorkerPlugin), {})
    plugin = plugin_type(work, image, blocks)
    client.register_plugin(plugin)
    workers = _worker_count(client)
    remaining, left = iter(groups), -(-len(work.plan) // work.batch)  # fewer are left where a scan goes on
    tasks: dict[Any, list[list[Tile]]] = {}
    completed = as_completed(raise_errors=False)

    def submit() -> None:
        nonlocal left
        size = max(1, min(GROUPS, left // (PARTS * workers)))
        if task := list(islice(remaining, size)):
            left -= size
            future = client.submit(_run_task, plugin.name, task, pure=False, retries=2)
            tasks[future] = task
            completed.add(future)

    try:
        for _ in range(AHEAD * workers):
            submit()
        for future in completed:
            task = tasks.pop(future)
            submit()
            error = future.exception()
            if error is None:
                yield future.result()
            elif isinstance(error, KilledWorker):
                reason = "the workers that computed it died"
                yield Done(
                    sum(map(len, task)), {t.block: (place(t.read), reason) for group in task for t in group}
                )
            else:
                raise error
    finally:
        for future in tasks:
            with suppress(Exception):
                future.cancel()
        with suppress(Exception):
            client.unregister_worker_plugin(plugin.name)


def map_on_cluster(
    client: Any, function: Callable[[_Item], _Result], items: Sequence[_Item], /
) -> list[_Result]:
    """Apply a function to items on the workers, a few at a time. Returns the results in the order of the items.

    Raises what the function raised, and Unfinished where the workers died again and again.
    """
    from distributed import KilledWorker

    size = max(1, -(-len(items) // (PARTS * _worker_count(client))))
    parts = [items[first : first + size] for first in range(0, len(items), size)]
    try:
        results = client.gather(client.map(partial(_apply, function), parts, pure=False, retries=2))
    except KilledWorker as error:
        raise Unfinished(
            "the workers died while they completed the file. All blocks are kept: run the same scan again", []
        ) from error
    return [result for part in results for result in part]


def _apply(function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """The function's results for some items, on a worker."""
    return [function(item) for item in items]


def _worker_count(client: Any) -> int:
    return max(1, len(client.scheduler_info(n_workers=-1)["workers"]))


def _run_task(name: str, groups: list[list[Tile]]) -> Done:
    """One task, on a worker that has the plugin `name`."""
    from distributed import get_worker

    done: Done = get_worker().plugins[name].run(groups)
    return done


@contextmanager
def cluster_client(dask: Any, workers: int | None) -> Iterator[Any]:
    """A `distributed.Client`: `dask` itself, or one for its address, or one for `workers` processes on this machine.

    Dask computes in threads other than the first of a process. To these, glibc gives memory that returns to the system
    as soon as a large tensor is freed, whatever its thresholds are (see `reused_memory`), unless MALLOC_ARENA_MAX is 1.
    The processes that are started here have this setting.

    Raises MissingExtra where Dask is not installed, and BadInput where no scheduler answers.
    """
    try:
        from dask import config
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingExtra("dask[distributed]", "cluster", "scanning with several workers") from error
    if workers is not None and (dask is not None or workers < 1):
        raise BadInput(f"workers={workers}: expected a positive number, and no dask= beside it")
    if isinstance(dask, Client):
        yield dask
    elif dask is not None:
        try:
            client = Client(str(dask), timeout="10s")
        except (OSError, ValueError, TimeoutError) as error:
            raise BadInput(f"dask={dask!r}: no Dask scheduler answers there: {error}") from error
        with client:
            yield client
    else:
        warned = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _UNPICKLING)))
        environment = {**config.get(_ENVIRONMENT, {}), "MALLOC_ARENA_MAX": 1, "PYTHONWARNINGS": warned}
        with (
            config.set({_ENVIRONMENT: environment, **_UNSEEN}),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                memory_limit=None,
                silence_logs=50,
                # a free port that no other machine reaches, where Dask would warn of one that is in use
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
