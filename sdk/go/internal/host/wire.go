// Package host speaks Geminga's host protocol: the socket, its frames, and the outcomes that wait to
// be sent. docs/host-protocol.md of Geminga describes the protocol.
package host

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
)

// Protocol is the version that is spoken.
const Protocol = "1"

// Verdicts of a message.
const (
	Done byte = iota
	Failed
	BadData
	Temporary
	Drop
	Hold
)

const (
	headBytes  = 12
	flushBytes = 1 << 18
	// Outcomes wait for each other only this long, so that a slow message does not keep those
	// before it, and a time-out finds the right one.
	flushAfter = 5 * time.Millisecond
)

// Frame is one frame from the worker.
type Frame struct {
	Kind byte
	Body []byte
}

// Wire is the connection with the worker. Its methods may be called from any goroutine.
type Wire struct {
	file *os.File

	reading sync.Mutex
	arrived *sync.Cond
	frames  []Frame
	answers map[string]chan answer
	ended   error

	writing  sync.Mutex
	outcomes []byte
	count    uint32
	head     []byte
	busy     bool
	flusher  *sync.Cond
	asked    uint64
}

type answer struct {
	value []byte
	found bool
}

var current struct {
	sync.Mutex
	wire *Wire
}

// Current is the wire of this process; nil before it is open.
func Current() *Wire {
	current.Lock()
	defer current.Unlock()
	return current.wire
}

// Open takes the socket that the worker gave, and frees standard input.
func Open() (*Wire, error) {
	file, err := take()
	if err != nil {
		return nil, err
	}
	os.Unsetenv("GMG_HOST_FD")
	wire := &Wire{
		file:    file,
		answers: map[string]chan answer{},
	}
	wire.arrived = sync.NewCond(&wire.reading)
	wire.flusher = sync.NewCond(&wire.writing)
	go wire.readAll()
	go wire.flushLate()
	current.Lock()
	current.wire = wire
	current.Unlock()
	return wire, nil
}

// given is the descriptor of the socket.
func given() (int, error) {
	text := os.Getenv("GMG_HOST_FD")
	if text == "" || os.Getenv("GMG_HOST_BINDING") != "socket" {
		return 0, errors.New("this program is a function, and Geminga starts it: " +
			"geminga functions create --go PROGRAM --inputs TOPIC")
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("GMG_HOST_FD is %q", text)
	}
	return fd, nil
}

func (w *Wire) readAll() {
	from := bufio.NewReaderSize(w.file, 1<<18)
	for {
		frame, err := readFrame(from)
		w.reading.Lock()
		if err != nil {
			w.ended = err
			for _, waiting := range w.answers {
				close(waiting)
			}
			w.answers = nil
			w.arrived.Broadcast()
			w.reading.Unlock()
			return
		}
		if frame.Kind == 'A' {
			w.answer(frame.Body)
		} else {
			// The worker sends no more than its window: this can not grow without bound.
			w.frames = append(w.frames, frame)
			w.arrived.Signal()
		}
		w.reading.Unlock()
	}
}

func readFrame(from *bufio.Reader) (Frame, error) {
	var head [headBytes]byte
	if _, err := io.ReadFull(from, head[:]); err != nil {
		return Frame{}, err
	}
	size, err := strconv.Atoi(string(head[2:11]))
	if err != nil {
		return Frame{}, fmt.Errorf("a frame with the head %q", head)
	}
	// Not reused: a function may keep its input.
	body := make([]byte, size)
	_, err = io.ReadFull(from, body)
	return Frame{head[0], body}, err
}

func (w *Wire) answer(body []byte) {
	if len(body) < 4 {
		return
	}
	size := int(binary.LittleEndian.Uint32(body))
	if len(body) < 4+size {
		return
	}
	var number string
	var found bool
	for _, pair := range ParseBlock(body[4 : 4+size]) {
		switch pair.Name {
		case "ask":
			number = pair.Value
		case "found":
			found = pair.Value == "1"
		}
	}
	if waiting := w.answers[number]; waiting != nil {
		delete(w.answers, number)
		waiting <- answer{body[4+size:], found}
	}
}

// Next waits for a frame. Its error is io.EOF when the worker has let go.
func (w *Wire) Next() (Frame, error) {
	w.reading.Lock()
	defer w.reading.Unlock()
	for len(w.frames) == 0 {
		if w.ended != nil {
			return Frame{}, w.ended
		}
		w.arrived.Wait()
	}
	frame := w.frames[0]
	w.frames = w.frames[1:]
	return frame, nil
}

// Begin says that a batch is in hand: its outcomes are flushed when they wait for long.
func (w *Wire) Begin() {
	w.writing.Lock()
	w.busy = true
	w.flusher.Signal()
	w.writing.Unlock()
}

// End says that the batch is done, and sends what waits.
func (w *Wire) End() error {
	w.writing.Lock()
	defer w.writing.Unlock()
	w.busy = false
	return w.flush()
}

func (w *Wire) flushLate() {
	for {
		w.writing.Lock()
		for !w.busy {
			w.flusher.Wait()
		}
		w.writing.Unlock()
		time.Sleep(flushAfter)
		w.writing.Lock()
		err := w.flush()
		w.writing.Unlock()
		if err != nil {
			return
		}
	}
}

// Output is a message on its way out: its header block and its payload.
type Output struct{ Block, Payload []byte }

// Outcome says what became of a message.
func (w *Wire) Outcome(number uint64, verdict byte, reason string, outputs []Output) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	to := binary.LittleEndian.AppendUint64(w.outcomes, number)
	to = append(to, verdict)
	to = binary.LittleEndian.AppendUint32(to, uint32(len(outputs)))
	to = binary.LittleEndian.AppendUint32(to, uint32(len(reason)))
	to = append(to, reason...)
	for _, output := range outputs {
		to = binary.LittleEndian.AppendUint32(to, uint32(len(output.Block)))
		to = binary.LittleEndian.AppendUint32(to, uint32(len(output.Payload)))
		to = append(to, output.Block...)
		to = append(to, output.Payload...)
	}
	w.outcomes = to
	w.count++
	if len(to) > flushBytes {
		return w.flush()
	}
	return nil
}

func (w *Wire) flush() error {
	if w.count == 0 {
		return nil
	}
	body := len(w.outcomes) + 4
	w.head = fmt.Appendf(w.head[:0], "O %09d\n", body)
	w.head = binary.LittleEndian.AppendUint32(w.head, w.count)
	w.count = 0
	_, err := w.file.Write(w.head)
	if err == nil {
		_, err = w.file.Write(w.outcomes)
	}
	w.outcomes = w.outcomes[:0]
	if cap(w.outcomes) > 4*flushBytes {
		w.outcomes = nil
	}
	return err
}

// Send sends one frame. Outcomes that wait go first, so that the order of events stays true.
func (w *Wire) Send(kind byte, block, rest []byte) error {
	w.writing.Lock()
	defer w.writing.Unlock()
	if err := w.flush(); err != nil {
		return err
	}
	size := len(rest)
	frame := make([]byte, 0, headBytes+4+len(block)+len(rest))
	if block != nil {
		size += 4 + len(block)
	}
	frame = fmt.Appendf(frame, "%c %09d\n", kind, size)
	if block != nil {
		frame = binary.LittleEndian.AppendUint32(frame, uint32(len(block)))
		frame = append(frame, block...)
	}
	frame = append(frame, rest...)
	_, err := w.file.Write(frame)
	return err
}

// Request asks the worker for something that needs no answer.
func (w *Wire) Request(op string, value []byte, pairs ...Pair) error {
	block := AppendPair(nil, "op", op)
	for _, pair := range pairs {
		block = AppendPair(block, pair.Name, pair.Value)
	}
	return w.Send('Q', block, value)
}

// Ask asks the worker and waits for the answer.
func (w *Wire) Ask(op, key string) (value []byte, found bool, err error) {
	waiting := make(chan answer, 1)
	w.reading.Lock()
	if w.ended != nil {
		w.reading.Unlock()
		return nil, false, w.ended
	}
	w.asked++
	number := strconv.FormatUint(w.asked, 10)
	w.answers[number] = waiting
	w.reading.Unlock()
	if err := w.Request(op, nil, Pair{"ask", number}, Pair{"key", key}); err != nil {
		return nil, false, err
	}
	got, open := <-waiting
	if !open {
		return nil, false, io.ErrUnexpectedEOF
	}
	return got.value, got.found, nil
}

// Log sends a line to the function's log.
func (w *Wire) Log(level, text string) error {
	return w.Send('L', AppendPair(nil, "level", level), []byte(text))
}
