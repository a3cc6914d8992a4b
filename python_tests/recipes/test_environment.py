"""What a run says of its machine."""

import torch

from stratcore.recipes.environment import environment


def test_versions_and_machine_are_those_of_this_process() -> None:
    known = environment(torch.device("cpu"))
    assert known["torch"] in (torch.__version__, torch.__version__.split("+")[0])
    assert known["device"] == "cpu" and known["threads"] == torch.get_num_threads() and "gpu" not in known
