"""What timm's files say is what timm says, without loading it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm

from pipeline.errors import TeacherError
from pipeline.labelling import timm_files
from pipeline.labelling.timm_files import hub_repositories, require_model, why_not_fetched


def repository_of(name: str) -> str | None:
    config = timm.models.get_pretrained_cfg(name)
    return config.hf_hub_id if config else None


def test_a_models_repository_is_timms() -> None:
    told = {name: hub_repositories(name) for name in timm.list_pretrained()[::12]}
    plain = {name: found for name, found in told.items() if found}
    assert len(plain) > 0.9 * len(told)
    for name, found in plain.items():
        # Of some the files say where timm's came from; one of the name is always looked for.
        assert repository_of(name) in {*found, f"timm/{name}"}


def test_without_a_tag_all_of_them_may_be_meant() -> None:
    assert {repository_of("resnet18"), "timm/resnet18.a2_in1k"} <= (
        hub_repositories("resnet18") or set()
    )


def test_weights_that_are_elsewhere_or_are_none_have_no_repository() -> None:
    assert hub_repositories("legacy_seresnet18.in1k") == frozenset()
    assert repository_of("legacy_seresnet18.in1k") is None
    assert hub_repositories("resnet18.nobody") is None


def test_where_the_files_do_not_tell_timm_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_files, "why_unreached", lambda: "no network")
    monkeypatch.setattr(timm_files, "hub_repositories", lambda _name: None)
    for cached in (False, True):
        monkeypatch.setattr(
            timm_files,
            "has_model",
            lambda name, here=cached: here and name == "timm/resnet18.a1_in1k",
        )
        assert why_not_fetched("resnet18.a1_in1k") == ("" if cached else "no network")
        assert why_not_fetched("resnet18") == ("" if cached else "no network")
    assert why_not_fetched("resnet18.nobody") == ""  # said by whoever loads it
    assert why_not_fetched("legacy_seresnet18.in1k") == ""


def test_timm_is_not_loaded_for_a_name() -> None:
    code = (
        "import sys\n"
        "from pipeline.labelling.timm_files import hub_repositories, require_model\n"
        "require_model('resnet18')\n"
        "assert hub_repositories('resnet18.a1_in1k') == {'timm/resnet18.a1_in1k'}\n"
        "assert not {'timm', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k", "resnet_18", "no way"]
)
def test_a_name_that_timm_has_not_is_refused_with_similar_ones(name: str) -> None:
    with pytest.raises(TeacherError, match="is no model of timm") as caught:
        require_model(name)
    assert ("similar names: resnet18" in str(caught.value)) == (name != "no way")
