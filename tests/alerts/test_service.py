"""URLs of Apprise: which are taken, and that nothing shows what is secret in them."""

import logging
import pickle
import sys
import threading

import pytest

from attnwatch import AttnwatchWarning, ConfigurationError
from attnwatch.alerts import Alert, Alerts
from attnwatch.alerts.background import Background
from attnwatch.alerts.service import Service, services
from attnwatch.lightning import AttentionMonitor
from tests.support.alert_server import SECRET, alert_server

pytestmark = pytest.mark.filterwarnings("ignore", "error::attnwatch.AttnwatchWarning")
ALERT = Alert("attnwatch: non_finite at step 6", "logits are nan", "error")


@pytest.fixture
def server():
    with alert_server() as started:
        yield started


def test_alert_arrives(server):
    assert Service(server.url).send(ALERT)
    (post,) = server.posts
    assert (post["title"], post["message"], post["type"]) == (ALERT.title, ALERT.text, "failure")
    assert Service(server.url).send(Alert("title", "text", "warning"))
    assert server.posts[1]["type"] == "warning"


WRONG = {
    "tokens are missing": (f"slack://{SECRET}", "slack:// is unknown or incomplete"),
    "unknown service": (f"carrierpigeon://{SECRET}", "carrierpigeon:// is unknown or incomplete"),
    "no scheme": (SECRET, "it has no scheme such as slack://"),
    "empty": ("", "it has no scheme such as slack://"),
    "second of two": (["json://localhost", f"nosuch://{SECRET}"], r"`alert` 2 of 2 is not a URL that Apprise knows"),
    "bytes": (SECRET.encode(), "or a list of them; got bytes"),
    "number": (3, "or a list of them; got int"),
    "list of numbers": ([3], "or a list of them; got list"),
    "unset variable": ("$ATTNWATCH_NOWHERE", "names the environment variable ATTNWATCH_NOWHERE, which is not set"),
}


@pytest.mark.parametrize(("alert", "message"), WRONG.values(), ids=WRONG)
def test_wrong_url_is_refused_without_being_shown(alert, message, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ConfigurationError, match=rf"`alert`.*{message}|{message}") as raised:
        AttentionMonitor(alert=alert)
    assert str(raised.value).startswith("`alert`")
    said = "".join([str(raised.value), repr(raised.value.__cause__), caplog.text, *capfd.readouterr()])
    assert SECRET not in said


def test_nothing_shows_the_secret(server, caplog):
    caplog.set_level(logging.DEBUG)
    monitor = AttentionMonitor(alert=[server.url])
    (service,) = services(server.url)
    server.status = 500
    assert not service.send(ALERT)
    shown = [repr(monitor), repr(monitor.part), repr(monitor.state_dict()), repr(service), str(service), service.name]
    assert not [text for text in [*shown, caplog.text] if SECRET in text or "localhost" in text]


def test_messages_of_apprise_come_back_and_those_of_other_threads_stay(server, caplog):
    service = Service(server.url)
    server.may_answer.clear()
    sending = threading.Thread(target=service.send, args=(ALERT,))
    sending.start()
    while not server.posts:
        pass
    logging.getLogger("apprise").warning("of another thread")
    server.may_answer.set()
    sending.join()
    logging.getLogger("apprise").warning("afterwards")
    assert [record.message for record in caplog.records] == ["of another thread", "afterwards"]


def test_url_may_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("ATTNWATCH_ALERT", server.url)
    (service,) = services("$ATTNWATCH_ALERT")
    assert service.send(ALERT)
    assert service.name == "json"


def test_without_apprise_the_extra_is_named_and_nothing_else_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "apprise", None)
    AttentionMonitor()
    with pytest.raises(ImportError, match=r"AttentionMonitor\(alert=…\) needs apprise: pip install 'attnwatch\[alerts"):
        AttentionMonitor(alert="json://localhost")


def send_often(alerts: Alerts) -> None:
    for _ in range(3):
        alerts.send(ALERT)
        alerts.finish()


def test_several_failures_are_one_warning_a_run(server):
    server.status = 500
    alerts = Alerts([server.url, server.url + "/second"])
    for _ in range(2):
        alerts.restart()
        with pytest.warns(AttnwatchWarning, match="an alert was not delivered; training continues") as caught:
            send_often(alerts)
        assert len(caught) == 1
    assert len(server.posts) == 12


def test_monitor_with_alerts_can_be_sent_to_another_process(server):
    again = pickle.loads(pickle.dumps(Alerts(server.url)))
    again.send(ALERT)
    again.finish()
    assert server.titles == [ALERT.title]


def test_tasks_are_done_in_their_order_and_too_many_are_refused():
    done, may_go = [], threading.Event()

    def work(task: int) -> None:
        may_go.wait()
        done.append(task)

    background = Background(work)
    taken = [background.put(task) for task in range(40)]
    assert taken.count(False) >= 40 - 32 - 1
    assert not background.finish(0.01)
    may_go.set()
    assert background.put(99)
    assert background.finish(60)
    assert 99 in done  # by a thread of its own: the first one may still be at work
    others = [task for task in done if task != 99]
    assert others == list(range(len(others)))
    assert background.finish(60)


@pytest.mark.parametrize("url", [" json://localhost/x\n", "JSON://localhost/x"])
def test_service_has_a_name_however_its_url_is_written(url):
    assert Service(url).name == "json"
