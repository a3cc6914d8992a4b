import itertools

import pytest

from stratcore.training.batch_stream import BatchStream


class Counting:
    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch
        self.starts: list[tuple[int, int]] = []

    def batches(self, epoch: int, start: int):
        self.starts.append((epoch, start))
        return ((epoch, index) for index in range(start, self.per_epoch))


@pytest.mark.parametrize("spent", range(8))
def test_a_restored_stream_goes_on_where_it_was(spent):
    stream = BatchStream(Counting(3))
    for _ in range(spent):
        stream.next()
    restored = BatchStream(Counting(3))
    restored.load_state_dict(stream.state_dict())
    expected = list(itertools.islice(itertools.product(range(9), range(3)), spent, spent + 7))
    assert [restored.next() for _ in range(7)] == expected


def test_resuming_does_not_replay():
    task = Counting(10**9)
    stream = BatchStream(task)
    stream.load_state_dict({"epoch": 4, "position": 10**8})
    assert stream.next() == (4, 10**8) and task.starts == [(4, 10**8)]


def test_an_empty_epoch_is_named():
    with pytest.raises(ValueError, match=r"Counting\.batches: epoch 0 holds no batch"):
        BatchStream(Counting(0)).next()
