"""Signatures for one container: their string-to-sign is put together anew here, from Azure's documents."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest

from launcher.errors import EngineError
from launcher.node_secrets import node_secrets, own_keys_warning
from launcher.store_keys import Needs

STORE = "az://account/container/team/ldlm"
NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
KEY = base64.b64encode(b"a key of the whole account").decode()


def test_without_a_deadline_nodes_get_the_account_s_key_and_a_plan_says_so() -> None:
    own, needs = {"AZURE_STORAGE_ACCOUNT_KEY": KEY}, Needs("a-run", None)
    assert node_secrets(STORE, own, needs) == own
    warning = own_keys_warning(STORE, own, needs, None)
    assert "key of your whole storage account" in warning and "--deadline HOURS" in warning
    assert KEY not in warning
    assert own_keys_warning(STORE, {"AZURE_STORAGE_SAS_KEY": "sv=1&sig=2"}, needs, None) is None


def test_a_signature_of_the_user_s_own_is_handed_on() -> None:
    own = {"AZURE_STORAGE_SAS_KEY": "sv=1&sig=2"}
    assert node_secrets(STORE, own, Needs("a-run", NOON)) == own


def test_the_account_s_key_stays_here_and_a_signature_for_its_container_goes() -> None:
    pytest.importorskip("azure.storage.blob")
    own = {"AZURE_STORAGE_ACCOUNT_KEY": KEY}
    (name, signed), = node_secrets(STORE, own, Needs("a-run", NOON)).items()
    assert own_keys_warning(STORE, own, Needs("a-run", NOON), 30) is None
    assert name == "AZURE_STORAGE_SAS_KEY" and KEY not in signed
    said = {word: values[0] for word, values in parse_qs(signed).items()}
    assert (said["se"], said["sr"], said["spr"]) == ("2026-11-28T14:00:00Z", "c", "https")
    assert set(said["sp"]) == set("rcwdl")
    # learn.microsoft.com, "Create a service SAS", version 2020-12-06 and later; what is not set is empty.
    fields = [said["sp"], "", said["se"], "/blob/account/container", "", "", "https", said["sv"], "c", "", "",
              "", "", "", "", ""]
    digest = hmac.new(base64.b64decode(KEY), "\n".join(fields).encode(), hashlib.sha256).digest()
    assert said["sig"] == base64.b64encode(digest).decode()


def test_what_is_no_key_is_named_without_it() -> None:
    pytest.importorskip("azure.storage.blob")
    with pytest.raises(EngineError, match="is no key of a storage account") as caught:
        node_secrets(STORE, {"AZURE_STORAGE_ACCOUNT_KEY": "abcde"}, Needs("a-run", NOON))
    assert "abcde" not in str(caught.value)
