"""What plan and doctor say of machines whose controller has died, cloud by cloud."""

import pytest
from launch_examples import example_plan

from launcher.doctor_clouds import look_at_switch
from launcher.findings import Verdict
from launcher.self_end import of_no_switch
from trainer.contract import Document


def warnings(*infras: str) -> list[str]:
    offer = example_plan().offers[Document.TRAIN]
    return list(of_no_switch(offer.model_copy(update={"infra": infra}) for infra in infras))


def test_only_clouds_whose_machines_would_be_billed_for_ever_are_warned_of() -> None:
    assert warnings("vast", "azure/eastus", "gcp", "slurm/mine", "local") == []
    assert warnings("lambda", "lambda/us-east-1", "vast") == [
        "on lambda a machine whose controller has died does not end itself: it is billed until you end it"]


@pytest.mark.parametrize(("cloud", "words"), [
    ("vast", "destroys itself by its own key"), ("gcp", "or powers off, which leaves the bill of its disk"),
    ("azure", "its public address stays, about $0.12 a day")])
def test_the_doctor_says_what_a_cloud_s_machines_do_and_that_it_has_not_tried(cloud: str, words: str) -> None:
    (finding,) = look_at_switch(cloud)
    assert finding.verdict is Verdict.NOT_CHECKED and words in finding.detail
    assert finding.detail.startswith("after 30 minutes without a trainer a machine ")


def test_the_doctor_says_nothing_of_machines_that_nobody_bills() -> None:
    assert list(look_at_switch("slurm")) == []
