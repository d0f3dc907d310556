// Package conformance judges a broker by the official Go client.
//
// The server is an outside one (SERVICE_URL and ADMIN_URL), or one that the tests start:
// $GEMINGA_BIN, else target/release/geminga, else target/debug/geminga.
package conformance

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apache/pulsar-client-go/pulsar"
	"github.com/apache/pulsar-client-go/pulsar/log"
	"github.com/sirupsen/logrus"
)

const patience = 15 * time.Second

var shared *server

type server struct {
	ServiceURL string `json:"serviceUrl"`
	AdminURL   string `json:"adminUrl"`

	data    string
	log     string
	process *exec.Cmd
}

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if outside() {
		shared = &server{ServiceURL: os.Getenv("SERVICE_URL"), AdminURL: strings.TrimRight(os.Getenv("ADMIN_URL"), "/")}
	} else {
		started, err := start()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		shared = started
		defer shared.close()
	}
	fmt.Println("server:", shared.ServiceURL)
	return m.Run()
}

func outside() bool { return os.Getenv("SERVICE_URL") != "" }

// ownServer is a server that the test may kill; the test is skipped where the server is not ours.
func ownServer(t *testing.T) *server {
	t.Helper()
	if outside() {
		t.Skip("kills the server; this one is not ours")
	}
	own, err := start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.close)
	return own
}

func binary() (string, error) {
	if named := os.Getenv("GEMINGA_BIN"); named != "" {
		return filepath.Abs(named)
	}
	target := os.Getenv("CARGO_TARGET_DIR")
	if target == "" {
		target = filepath.Join("..", "..", "..", "target")
	}
	for _, profile := range []string{"release", "debug"} {
		path := filepath.Join(target, profile, "geminga")
		if _, err := os.Stat(path); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", fmt.Errorf("no geminga in %s: run `cargo build --release`, or set GEMINGA_BIN or SERVICE_URL and ADMIN_URL", target)
}

func start() (*server, error) {
	folder, err := os.MkdirTemp("", "geminga-conformance-go-")
	if err != nil {
		return nil, err
	}
	s := &server{data: filepath.Join(folder, "data"), log: filepath.Join(folder, "server.log")}
	return s, s.launch("0", "0")
}

// launch starts the process and reads the addresses from its first line.
func (s *server) launch(port, httpPort string) error {
	path, err := binary()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer logFile.Close()
	s.process = exec.Command(path, "standalone", "--port", port, "--http-port", httpPort, "--data", s.data, "-o", "json")
	s.process.Stderr = logFile
	out, err := s.process.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.process.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, s)
	}
	if err != nil {
		said, _ := os.ReadFile(s.log)
		return fmt.Errorf("the server did not become ready: %w: %s", err, said)
	}
	return nil
}

func (s *server) restartAfterKill(t *testing.T) {
	t.Helper()
	if err := s.process.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.process.Wait() // "signal: killed" is the wanted end
	if err := s.launch(port(t, s.ServiceURL), port(t, s.AdminURL)); err != nil {
		t.Fatal(err)
	}
}

func (s *server) close() {
	_ = s.process.Process.Signal(syscall.SIGTERM)
	_ = s.process.Wait()
	_ = os.RemoveAll(filepath.Dir(s.data))
}

func port(t *testing.T, address string) string {
	t.Helper()
	parsed, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	return parsed.Port()
}

func (s *server) client(t *testing.T) pulsar.Client {
	t.Helper()
	quiet := logrus.New()
	quiet.SetLevel(logrus.ErrorLevel)
	client, err := pulsar.NewClient(pulsar.ClientOptions{
		URL:              s.ServiceURL,
		OperationTimeout: patience,
		Logger:           log.NewLoggerWithLogrus(quiet),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// rest sends a request and fails the test when it is refused.
func (s *server) rest(t *testing.T, method, path string, body any) []byte {
	t.Helper()
	data, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequest(method, s.AdminURL+path, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	content, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if answer.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s", method, path, answer.Status, content)
	}
	return content
}

func (s *server) backlog(t *testing.T, topic, subscription string) int {
	t.Helper()
	var stats struct {
		Subscriptions map[string]struct {
			MsgBacklog int `json:"msgBacklog"`
		} `json:"subscriptions"`
	}
	content := s.rest(t, http.MethodGet, "/admin/v2/persistent/public/default/"+topic+"/stats", nil)
	if err := json.Unmarshal(content, &stats); err != nil {
		t.Fatal(err)
	}
	return stats.Subscriptions[subscription].MsgBacklog
}

var names atomic.Int64

func topicOf(t *testing.T) string {
	name := strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())
	return fmt.Sprintf("go-%s-%d-%d", name, os.Getpid(), names.Add(1))
}

// eventually waits on a condition, with a deadline.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	until := time.Now().Add(patience)
	for wait := 5 * time.Millisecond; !condition(); wait = min(wait*3/2, 100*time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(wait)
	}
}
