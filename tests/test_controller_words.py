"""What is made of words about a controller: where it is, what its machine says, what it costs. No ssh."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from launcher.controller import Controller, check_host, parse_address, read_host
from launcher.errors import EngineError, UsageError

HOST = """\
system=Linux
hostname=sky
python=python3 3.9 1
python=python3.12 3.12 1
disk_kib=41943040
memory_kib=3145728
service=cron
port=46580
"""
ADDRESS = parse_address("me@sky.example.org:2222")
STATE = ('state={"commit": "c0ffee", "since": "2026-11-27T12:00:00+00:00", "port": 46580, "service": "cron", '
         '"clouds": ["vast"], "files": ["~/k"]}\n')


@pytest.mark.parametrize(("typed", "destination", "port", "url"), [
    ("sky", "sky", None, "ssh://sky"),
    ("root@198.51.100.7", "root@198.51.100.7", None, "ssh://root@198.51.100.7"),
    ("me@sky.example.org:2222", "me@sky.example.org", 2222, "ssh://me@sky.example.org:2222"),
    ("ssh://me@sky:22", "me@sky", 22, "ssh://me@sky:22"),
    ("me@[2001:db8::1]:22", "me@2001:db8::1", 22, "ssh://me@[2001:db8::1]:22")])
def test_a_machine_is_typed_as_ssh_users_type_it_and_kept_as_a_url(typed, destination, port, url):
    address = parse_address(typed)
    assert (address.destination, address.port, address.url) == (destination, port, url)
    assert parse_address(url) == address == parse_address(address.typed)


@pytest.mark.parametrize("typed", ["", "-oProxyCommand=x", "a b", "me@", "sky:0", "sky:70000", "sky;ls",
                                   "a@b@c", "https://sky", "me@-x"])
def test_what_ssh_could_take_for_an_option_or_a_command_is_refused(typed):
    with pytest.raises(UsageError):
        parse_address(typed)


def test_a_machine_that_will_do_is_not_refused_and_names_the_python_that_will():
    host = read_host(HOST, ADDRESS)
    check_host(host, ADDRESS, force=False)
    assert (host.python, host.services, host.is_set_up) == ("python3.12", ("cron", "session"), False)


@pytest.mark.parametrize(("said", "problem", "fix", "can_be_forced"), [
    (HOST.replace("Linux", "Darwin"), "it runs Darwin", "take a machine with Linux", False),
    (HOST.replace("python=python3.12 3.12 1\n", ""), "its Python is 3.9, and 3.11", "python3.11-venv", False),
    (HOST.replace("3.12 1", "3.12 0"), "its Python cannot make virtual", "python3.12-venv", False),
    (HOST.replace("python=", "snake="), "it has no Python 3", "install python3 python3-venv", False),
    (HOST + "lacks=rsync\nlacks=ssh\n", "no rsync and no ssh", "install rsync openssh-client", False),
    (HOST + "checkout=taken\n", "~/ldlm holds something", "ssh -p 2222 me@sky.example.org mv ldlm", False),
    (HOST.replace("3145728", "1048576"), "only 1.0 GiB of its memory", "--force", True),
    (HOST.replace("41943040", "1048576"), "only 1.0 GiB of its disk", "--force", True),
    (HOST + "vast=/root/.vast_containerlabel\n", "of Vast (/root/.vast_containerlabel)", "--force", True),
    (HOST + "vast=$CONTAINER_ID\n", "a machine of Vast ($CONTAINER_ID)", "a small VPS of your own", True),
    (HOST.replace("hostname=sky", "hostname=ssh5.vast.ai"), "(ssh5.vast.ai)", "--force", True)])
def test_a_machine_that_will_not_do_is_refused_with_what_to_do(said, problem, fix, can_be_forced):
    host = read_host(said, ADDRESS)
    with pytest.raises(EngineError) as caught:
        check_host(host, ADDRESS, force=False)
    assert problem in caught.value.problem and fix in str(caught.value.fix)
    if can_be_forced:
        check_host(host, ADDRESS, force=True)
    else:
        with pytest.raises(EngineError):
            check_host(host, ADDRESS, force=True)


def test_a_controller_needs_no_room_for_what_it_has_already():
    full = HOST.replace("3145728", "1048576").replace("41943040", "1048576")
    check_host(read_host(full + "checkout=taken\n" + STATE, ADDRESS), ADDRESS, force=False)


@pytest.mark.parametrize("said", ["", "hello\n", HOST.replace("41943040", "much"), HOST + "state={\n",
                                  HOST + "state=[]\n"])
def test_a_machine_that_says_nothing_to_be_understood_is_told(said):
    with pytest.raises(EngineError) as caught:
        read_host(said, ADDRESS)
    assert "what it says of itself cannot be understood" in caught.value.problem


def test_a_controller_is_paid_for_since_it_was_set_up_whatever_it_does():
    controller = Controller.read(STATE.removeprefix("state="))
    assert controller.usd_so_far(Decimal("0.01"), datetime(2026, 11, 27, 12, tzinfo=UTC)
                                 + timedelta(days=2)) == Decimal("0.48")
