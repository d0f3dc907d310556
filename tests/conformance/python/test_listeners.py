"""Advertised listeners: clients are told the addresses of the listener that they ask for, or that they came by."""

import json
import socket
import subprocess
import threading
import urllib.error
import urllib.request

import pulsar
import pytest

from server import Server, binary, quiet_ports

pytestmark = pytest.mark.own_server


class Road:
    """Forwards a port to another one and counts who came by."""

    def __init__(self, port):
        self.target, self.came = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                one, _ = self.listener.accept()
            except OSError:
                return
            self.came += 1
            other = socket.create_connection(("127.0.0.1", self.target))
            for pair in [(one, other), (other, one)]:
                threading.Thread(target=self.copy, args=pair, daemon=True).start()

    @staticmethod
    def copy(source, target):
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self):
        self.listener.close()


@pytest.fixture
def house(tmp_path):
    """A server with two listeners, and a road to the outer one."""
    (port, http_port), (bound, bound_http) = quiet_ports(), quiet_ports()
    road = Road(port)
    conf = tmp_path / "broker.conf"
    conf.write_text(f"advertisedListeners=inner:pulsar://127.0.0.1:{port},inner:http://127.0.0.1:{http_port},"
                    f"outer:pulsar://127.0.0.1:{road.port},outer:http://127.0.0.1:{bound_http}\n"
                    "internalListenerName=inner\n"
                    f"bindAddresses=outer:pulsar://127.0.0.1:{bound},outer:http://127.0.0.1:{bound_http}\n")
    server = Server("--config", str(conf), ports=(port, http_port)).start()
    server.road, server.bound, server.bound_http = road, bound, bound_http
    yield server
    server.close()
    road.close()


def exchange(client, topic):
    consumer = client.subscribe(topic, "s")
    client.create_producer(topic).send(b"x")
    assert consumer.receive(10000).data() == b"x"


def test_a_client_goes_to_the_listener_that_it_names(house, new_client):
    exchange(new_client(house.service_url), "plain")
    exchange(new_client(house.service_url, listener_name="inner"), "inner")
    assert house.road.came == 0
    exchange(new_client(house.service_url, listener_name="outer"), "outer")
    assert house.road.came >= 1


def test_who_comes_by_a_bound_address_gets_its_listener(house, new_client):
    exchange(new_client(f"pulsar://127.0.0.1:{house.bound}"), "bound")
    assert house.road.came >= 1


def test_a_listener_that_is_not_there_is_an_error(house, new_client):
    client = new_client(house.service_url, listener_name="none", operation_timeout_seconds=3)
    with pytest.raises(pulsar.PulsarException):
        client.create_producer("x")


def test_lookups_over_http(house):
    path = "/lookup/v2/topic/persistent/public/default/x"

    def lookup(query="", headers={}, base=house.admin_url):
        with urllib.request.urlopen(urllib.request.Request(base + path + query, headers=headers), timeout=10) as answer:
            return json.load(answer)
    inner, outer = f"pulsar://127.0.0.1:{house.port}", f"pulsar://127.0.0.1:{house.road.port}"
    assert lookup()["brokerUrl"] == inner
    assert lookup("?listenerName=outer")["brokerUrl"] == outer
    by_header = lookup(headers={"X-Pulsar-ListenerName": "outer"}, base=f"http://127.0.0.1:{house.bound_http}")
    assert (by_header["brokerUrl"], by_header["httpUrl"]) == (outer, f"http://127.0.0.1:{house.bound_http}")
    with pytest.raises(urllib.error.HTTPError) as refusal:
        lookup("?listenerName=none")
    assert refusal.value.code == 400 and b"none" in refusal.value.read()


@pytest.mark.parametrize("line,part", [
    ("advertisedListeners=a:pulsar://h", "advertisedListeners"),
    ("advertisedListeners=a:pulsar://h:1\ninternalListenerName=b", "internalListenerName"),
    ("advertisedListeners=a:pulsar://h:1\nbindAddresses=b:pulsar://127.0.0.1:1", "bindAddresses"),
    ("advertisedListeners=a:pulsar://h:1\nadvertisedAddress=h", "advertisedAddress"),
])
def test_what_does_not_fit_is_refused_by_name(tmp_path, line, part):
    conf = tmp_path / "broker.conf"
    conf.write_text(line + "\n")
    ended = subprocess.run([binary(), "standalone", "--ephemeral", "--port", "0", "--http-port", "0", "--config", str(conf)],
                           capture_output=True, text=True, timeout=20)
    assert ended.returncode != 0 and part in ended.stderr, ended
