"""Engines that run tasks: this process, or the workers of a Ray cluster. Only the order of the results may differ."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar

from catalyzer.errors import MissingPackage, Unavailable

Item = TypeVar("Item")
Done = TypeVar("Done")

MAX_RETRIES = 10  # of a task whose worker died; after that many, the task itself must be what kills its workers


class Engine(Protocol):
    """Calls `work` with each item, and yields items and results as they finish."""

    def __call__(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[tuple[Item, Done]]: ...


def local(work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[tuple[Item, Done]]:
    """One item after the other, in this process, whose loops use all cores.

    >>> list(local(abs, [-1, 2]))
    [(-1, 1), (2, 2)]
    """
    for item in items:
        yield item, work(item)


class RayEngine:
    """Each item is a task of a Ray cluster on one core; tasks of a worker that dies run again on another.

    All machines of the cluster have this package, and see the same files under the same names.

    Args:
        address: address of a running cluster, such as `"auto"` or `"HOST:6379"`; None starts one on this machine, which ends
            with the process.

    Raises:
        MissingPackage: when called, if Ray is not installed.
        Unavailable: when called, if the cluster cannot be joined, or if a task's workers died again and again.

    >>> dict(RayEngine()(abs, [-1, 2]))  # doctest: +SKIP
    {-1: 1, 2: 2}
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    def __call__(self, work: Callable[[Item], Done], items: Sequence[Item]) -> Iterator[tuple[Item, Done]]:
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingPackage('engine=ray needs Ray: pip install "catalyzer[ray]"') from None
        if not ray.is_initialized():
            self._connect(ray)
        shared = ray.put(work)  # networks and queries travel to each machine once
        task: Any = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(_on_one_core).options(name="shard")
        waiting, running = iter(items), dict[Any, Item]()
        while True:
            # Results wait in memory until they are taken, so there are only as many tasks as keep all cores busy.
            room = max(1, 2 * int(ray.cluster_resources().get("CPU", 0))) - len(running)
            running |= {task.remote(shared, item): item for item in islice(waiting, max(0, room))}
            if not running:
                return
            (done,), _ = ray.wait([*running])
            try:
                result = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                reason = str(error).splitlines()[0]
                raise Unavailable(f"Ray gave up after {MAX_RETRIES + 1} attempts, see its logs: {reason}") from None
            yield running.pop(done), result
            del done, result  # frees its memory before the next one is awaited

    def _connect(self, ray: Any) -> None:
        try:
            ray.init(
                address=self.address or "local", include_dashboard=None if self.address else False,
                logging_level="warning", log_to_driver=False,
            )  # fmt: skip
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise Unavailable(f"address={self.address}: no Ray cluster can be reached there ({reason})") from None


def _on_one_core(work: Callable[[Item], Done], item: Item) -> Done:
    # Ray limits torch and faiss by OMP_NUM_THREADS, which numba ignores.
    from numba import set_num_threads

    set_num_threads(1)
    return work(item)
