package pf

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"
)

// What InstanceControl tells; protobuf by hand.
type stats struct {
	sync.Mutex
	received, processed, userExceptions int64
	last                                time.Time
	busy                                time.Duration
	exceptions                          []exception
	heard                               time.Time
}

type exception struct {
	text string
	at   time.Time
}

func (s *stats) change(how func()) {
	s.Lock()
	defer s.Unlock()
	how()
}

func integer(to []byte, field int, value int64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(to, uint64(field)<<3), uint64(value))
}

func double(to []byte, field int, value float64) []byte {
	return binary.LittleEndian.AppendUint64(binary.AppendUvarint(to, uint64(field)<<3|1), math.Float64bits(value))
}

func text(to []byte, field int, value string) []byte {
	to = binary.AppendUvarint(binary.AppendUvarint(to, uint64(field)<<3|2), uint64(len(value)))
	return append(to, value...)
}

func (s *stats) status(instance int) []byte {
	s.Lock()
	defer s.Unlock()
	out := integer(nil, 1, 1)
	out = integer(out, 5, s.processed)
	out = integer(out, 6, s.userExceptions)
	for _, one := range s.exceptions {
		out = text(out, 7, string(integer(text(nil, 1, one.text), 2, one.at.UnixMilli())))
	}
	if s.processed > 0 {
		out = double(out, 12, s.busy.Seconds()*1000/float64(s.processed))
		out = integer(out, 13, s.last.UnixMilli())
	}
	out = text(out, 14, fmt.Sprint(instance))
	return integer(out, 17, s.received)
}

func (s *stats) answer(method string, instance int) ([]byte, bool) {
	switch method {
	case "HealthCheck":
		s.change(func() { s.heard = time.Now() })
		return integer(nil, 1, 1), true
	case "GetFunctionStatus":
		return s.status(instance), true
	case "GetMetrics", "GetAndResetMetrics":
		s.Lock()
		defer s.Unlock()
		entry := double(text(nil, 1, "user_metric_words_sum"), 2, float64(s.processed))
		return text(integer(nil, 2, s.received), 9, string(entry)), true
	}
	return nil, false
}

// Serves the service as gRPC has it: HTTP/2 without TLS, one message each way, the status in a trailer.
func (s *stats) serve(port, instance int) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	handler := func(w http.ResponseWriter, r *http.Request) {
		asked, _ := io.ReadAll(r.Body)
		method := strings.TrimPrefix(r.URL.Path, "/proto.InstanceControl/")
		answer, known := s.answer(method, instance)
		w.Header().Set("content-type", "application/grpc")
		if !known || r.Header.Get("content-type") != "application/grpc" || len(asked) != 5 {
			w.Header().Set("grpc-status", "12")
			return
		}
		w.Write(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(answer))))
		w.Write(answer)
		w.Header().Set(http.TrailerPrefix+"grpc-status", "0")
	}
	server := http.Server{Addr: fmt.Sprintf("127.0.0.1:%d", port), Protocols: protocols, Handler: http.HandlerFunc(handler)}
	return server.ListenAndServe()
}
