"""A key in an address is refused before it is shown, and shown nowhere."""

import pytest

from launcher.commands import PlanOptions, check_keyless, propose
from launcher.doctor import examine
from launcher.doctor_sky import look_at_controller
from launcher.errors import UsageError

WITH_KEYS = ("s3://bucket/x?access_key_id=AKIAXXXXXXXXXXXXXXXX&secret_access_key=topsecret",
             "s3://KEY:topsecret@bucket/x")


@pytest.mark.parametrize("url", WITH_KEYS)
def test_a_stores_url_with_a_key_is_refused_by_plan_and_doctor(url: str) -> None:
    for look in (lambda: propose("smoke", PlanOptions(infra="vast", store=url)),
                 lambda: examine("smoke", "vast", url)):
        with pytest.raises(UsageError) as refused:
            look()
        assert "topsecret" not in str(refused.value) and "--store" in str(refused.value)
    check_keyless("s3://bucket/x?region=eu-west-1")


def test_doctor_does_not_show_the_password_of_an_api_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYPILOT_API_SERVER_ENDPOINT", "http://me:topsecret@127.0.0.1:1")
    (found,) = look_at_controller()
    assert "topsecret" not in repr(found) and "of your own" in found.detail
