"""Tokens, certificates, TLS and what each role may do, on a server of our own."""

import base64
import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request

import pulsar
import pytest
import websocket

from server import Server, binary
from support import assert_nothing, data, eventually, receive

pytestmark = pytest.mark.own_server


def geminga(*arguments):
    return subprocess.run([binary(), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class House:
    """A certificate authority, a key for tokens, and a server with both."""

    def __init__(self, folder):
        self.folder = folder
        self.make("ca", None, "/CN=ca")
        self.make("server", "ca", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")
        self.make("reader", "ca", "/CN=reader")
        self.make("forged", None, "/CN=root")
        geminga("tokens", "create-secret-key", "--file", self.at("secret.key"))
        conf = {
            "authenticationEnabled": "true", "authorizationEnabled": "true", "superUserRoles": "root",
            "authenticationProviders": "org.apache.pulsar.broker.authentication.AuthenticationProviderToken,"
                                       "org.apache.pulsar.broker.authentication.AuthenticationProviderTls",
            "authenticationRefreshCheckSeconds": "2", "tokenSecretKey": "file://" + self.at("secret.key"),
            "tlsCertificateFilePath": self.at("server.pem"), "tlsKeyFilePath": self.at("server.key"),
            "tlsTrustCertsFilePath": self.at("ca.pem"), "tlsCertRefreshCheckDurationSec": "1",
            "brokerServicePortTls": "0", "webServicePortTls": "0",
        }
        with open(self.at("broker.conf"), "w") as file:
            file.writelines(f"{name}={value}\n" for name, value in conf.items())
        self.server = Server("--config", self.at("broker.conf")).start()
        for role, actions in [("maker", ["produce"]), ("reader", ["consume"])]:
            self.rest("POST", f"/admin/v2/namespaces/public/default/permissions/{role}", actions)

    def at(self, name):
        return os.path.join(self.folder, name)

    def make(self, name, signer, subject, extension=None):
        """A key and a certificate; signed by itself without a signer."""
        key, pem = self.at(name + ".key"), self.at(name + ".pem")
        if signer is None:
            openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", pem, "-subj", subject)
            return
        request, extra = self.at(name + ".csr"), self.at(name + ".ext")
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", subject)
        with open(extra, "w") as file:
            file.write((extension or "basicConstraints=CA:FALSE") + "\n")
        openssl("x509", "-req", "-in", request, "-CA", self.at(signer + ".pem"), "-CAkey", self.at(signer + ".key"),
                "-CAcreateserial", "-days", "2", "-out", pem + ".new", "-extfile", extra)
        os.replace(pem + ".new", pem)

    def token(self, role, *options):
        return geminga("tokens", "create", "--secret-key", self.at("secret.key"), "--subject", role, *options)

    def rest(self, method, path, body=None, role="root", tls=False):
        request = urllib.request.Request((self.server.told["adminUrlTls"] if tls else self.server.admin_url) + path, method=method,
                                         data=None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if role:
            request.add_header("Authorization", "Bearer " + self.token(role))
        context = ssl.create_default_context(cafile=self.at("ca.pem")) if tls else None
        with urllib.request.urlopen(request, timeout=10, context=context) as response:
            return response.read()


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    house = House(str(tmp_path_factory.mktemp("house")))
    yield house
    house.server.close()


def as_role(house, new_client, role, **options):
    return new_client(house.server.service_url, authentication=pulsar.AuthenticationToken(house.token(role)), **options)


def test_tokens_and_grants(house, new_client, topic):
    producer = as_role(house, new_client, "maker").create_producer(topic)
    reading = as_role(house, new_client, "reader")
    consumer = reading.subscribe(topic, "s")
    producer.send(b"x")
    assert consumer.receive(5000).data() == b"x"
    with pytest.raises(pulsar.AuthorizationError):
        reading.create_producer(topic)
    with pytest.raises(pulsar.AuthorizationError):
        as_role(house, new_client, "stranger").create_producer(topic)


def test_a_right_that_is_taken_back_counts_at_once(house, new_client, topic):
    right = "/admin/v2/namespaces/public/default/permissions/leaver"
    house.rest("POST", right, ["produce", "consume"])
    client = as_role(house, new_client, "leaver", operation_timeout_seconds=5)
    producer = client.create_producer(topic, send_timeout_millis=5000)
    consumer = client.subscribe(topic, "s")
    other = as_role(house, new_client, "maker").create_producer(topic)
    producer.send(b"x")
    assert consumer.receive(5000).data() == b"x"
    house.rest("DELETE", right)
    with pytest.raises(pulsar.PulsarException):
        producer.send(b"late")
    other.send(b"not for everybody")
    with pytest.raises(pulsar.PulsarException):
        consumer.receive(1000)


@pytest.mark.parametrize("how", ["nothing", "forged", "expired"])
def test_nobody_else_comes_in(house, new_client, topic, how):
    # the client asks again until its own time is over
    seconds = {"operation_timeout_seconds": 3}
    if how == "nothing":
        client = new_client(house.server.service_url, **seconds)
    else:
        key = house.at("other.key")
        if not os.path.exists(key):
            geminga("tokens", "create-secret-key", "--file", key)
        token = geminga("tokens", "create", "--secret-key", key, "--subject", "root") if how == "forged" \
            else house.token("root", "--expiry-time", "0s")
        client = new_client(house.server.service_url, authentication=pulsar.AuthenticationToken(token), **seconds)
    with pytest.raises(pulsar.PulsarException):
        client.create_producer(topic)


def test_an_expired_token_is_renewed_in_mid_connection(house, new_client, topic):
    asked = []

    def token():
        asked.append(time.monotonic())
        return house.token("maker", "--expiry-time", "2s")
    client = new_client(house.server.service_url, authentication=pulsar.AuthenticationToken(token))
    producer = client.create_producer(topic)
    connections = eventually(lambda: len(asked))
    until = time.monotonic() + 7
    while time.monotonic() < until:
        producer.send(b"x")
        time.sleep(0.2)
    assert len(asked) > connections


def test_tls(house, new_client, topic):
    url = house.server.told["serviceUrlTls"]
    options = {"tls_trust_certs_file_path": house.at("ca.pem"), "tls_validate_hostname": True}
    client = new_client(url, authentication=pulsar.AuthenticationToken(house.token("maker")), **options)
    client.create_producer(topic).send(b"x")
    other = new_client(url, authentication=pulsar.AuthenticationToken(house.token("maker")),
                       tls_trust_certs_file_path=house.at("forged.pem"), operation_timeout_seconds=3)
    with pytest.raises(pulsar.PulsarException):
        other.create_producer(topic)


def test_a_websocket_ends_with_its_token(house, topic):
    """Whoever came with a token that ends, and nobody else; what was sent in time is stored."""
    made = []

    def session(path, role, *options):
        header = "Authorization: Bearer " + house.token(role, *options)
        url = house.server.admin_url.replace("http", "ws", 1) + f"/ws/v2/{path}"
        made.append(websocket.create_connection(url, timeout=20, header=[header]))
        return made[-1]
    name = f"persistent/public/default/{topic}"
    send = {"payload": base64.b64encode(b"x").decode()}
    try:
        reading = session(f"consumer/{name}/s", "reader")
        ending = [session(f"producer/{name}", "maker", "--expiry-time", "3s"),
                  session(f"consumer/{name}/other", "reader", "--expiry-time", "3s"),
                  session(f"reader/{name}", "reader", "--expiry-time", "3s")]
        lasting = session(f"producer/{name}", "maker")
        ending[0].send(json.dumps(send))
        assert json.loads(ending[0].recv())["result"] == "ok"
        for socket in ending:
            kind, content = websocket.ABNF.OPCODE_TEXT, b""
            while kind != websocket.ABNF.OPCODE_CLOSE:
                kind, content = socket.recv_data()       # what was delivered in time comes before the end
            assert (int.from_bytes(content[:2], "big"), content[2:]) == (1008, b"the token has expired")
        lasting.send(json.dumps(send))
        assert json.loads(lasting.recv())["result"] == "ok"
        for _ in range(2):
            assert base64.b64decode(json.loads(reading.recv())["payload"]) == b"x"
        with pytest.raises(websocket.WebSocketBadStatusException) as refused:
            session(f"producer/{name}", "maker", "--expiry-time", "0s")
        assert refused.value.status_code == 401
    finally:
        for socket in made:
            socket.close()


ASIDE = """\
from pulsar import Function

class Aside(Function):
    def process(self, input, context):
        context.publish("persistent://public/aside/t", input)
"""


def test_a_function_has_the_rights_of_who_registered_it(house, new_client, topic, tmp_path):
    """Or changed it last: beyond its own namespace, to a topic that only its code names, and only as long as they have them."""
    house.rest("PUT", "/admin/v2/namespaces/public/aside", {})
    for namespace, role, actions in [("default", "builder", ["functions"]), ("default", "writer", ["functions"]), ("aside", "writer", ["produce"])]:
        house.rest("POST", f"/admin/v2/namespaces/public/{namespace}/permissions/{role}", actions)
    code = tmp_path / "aside.py"
    code.write_text(ASIDE)
    name = topic.replace("_", "-")

    def functions(role, *words):
        geminga("functions", *words, "--name", name, "--admin-url", house.server.admin_url, "--service-url", house.server.service_url,
                "--token", house.token(role))
    root = as_role(house, new_client, "root")
    beyond = root.subscribe("persistent://public/aside/t", "probe")
    dead = root.subscribe(f"{topic}-dead", "probe")
    producer = as_role(house, new_client, "maker").create_producer(topic)
    functions("builder", "create", "--py", str(code), "--classname", "aside.Aside", "--inputs", topic,
              "--max-message-retries", "0", "--dead-letter-topic", f"{topic}-dead")
    try:
        producer.send(b"1")
        assert data(receive(dead, 1)) == [b"1"]
        assert_nothing(beyond)
        functions("writer", "update", "--user-config", '{"changed": "by another"}')
        producer.send(b"2")
        assert data(receive(beyond, 1)) == [b"2"]
        assert_nothing(dead)
        house.rest("DELETE", "/admin/v2/namespaces/public/aside/permissions/writer")

        def taken_back():
            producer.send(b"3")
            try:
                return dead.receive(500).data() == b"3"
            except pulsar.Timeout:
                return False
        eventually(taken_back, what="the right that was taken back is missing")
    finally:
        functions("root", "delete")


def test_client_certificates(house, new_client, topic):
    url, options = house.server.told["serviceUrlTls"], {"tls_trust_certs_file_path": house.at("ca.pem")}
    shown = pulsar.AuthenticationTLS(house.at("reader.pem"), house.at("reader.key"))
    client = new_client(url, authentication=shown, **options)
    client.subscribe(topic, "s")
    with pytest.raises(pulsar.AuthorizationError):
        client.create_producer(topic)
    forged = pulsar.AuthenticationTLS(house.at("forged.pem"), house.at("forged.key"))
    with pytest.raises(pulsar.PulsarException):
        new_client(url, authentication=forged, operation_timeout_seconds=3, **options).create_producer(topic)


def test_rest(house):
    for tls in (False, True):
        assert b"public" in house.rest("GET", "/admin/v2/tenants", tls=tls)
        for role in (None, "maker"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                house.rest("GET", "/admin/v2/tenants", role=role, tls=tls)
            assert refused.value.code == 401
    with pytest.raises(urllib.error.HTTPError) as refused:
        house.rest("POST", "/admin/v2/namespaces/public/default/retention", {}, role="maker")
    assert refused.value.code == 403


def test_the_command_line_shows_its_token(house):
    arguments = ["--admin-url", house.server.admin_url, "--token", house.token("root")]
    assert "public" in geminga("tenants", "list", *arguments)
    refused = subprocess.run([binary(), "tenants", "list", *arguments[:2]], capture_output=True, text=True)
    assert refused.returncode == 5, refused


def test_certificates_are_taken_without_a_restart(house):
    def serial():
        host, port = house.server.told["serviceUrlTls"].removeprefix("pulsar+ssl://").split(":")
        return ssl.get_server_certificate((host, int(port)))
    before = serial()
    house.make("server", "ca", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    eventually(lambda: serial() != before, what="the new certificate")


def test_no_secret_is_in_the_log(house):
    token = house.token("root")
    with open(house.server.log_path) as log:
        text = log.read()
    assert token.split(".")[0] not in text
    with open(house.at("secret.key"), "rb") as key:
        assert key.read().hex() not in text


def test_settings_that_are_not_honoured_are_refused(tmp_path):
    conf = tmp_path / "broker.conf"
    conf.write_text("clusterName=c\nzookeeperServers=x\n")
    refused = subprocess.run([binary(), "standalone", "--ephemeral", "--config", str(conf)], capture_output=True, text=True)
    assert refused.returncode != 0 and "zookeeperServers" in refused.stderr, refused
