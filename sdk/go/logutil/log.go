// Package logutil logs for functions: what is logged here goes to the function's log, with its level.
// LOGGING_LEVEL (debug, info, warn, error) sets what is logged at all; info unless set.
package logutil

import (
	"fmt"
	"os"
	"strings"

	"github.com/apache/pulsar/pulsar-function-go/internal/host"
)

type level int

const (
	debug level = iota
	info
	warn
	failure
)

var names = []string{"DEBUG", "INFO", "WARN", "ERROR"}

var least = func() level {
	wanted := strings.ToUpper(os.Getenv("LOGGING_LEVEL"))
	for at, name := range names {
		if strings.HasPrefix(wanted, name) {
			return level(at)
		}
	}
	return info
}()

func write(at level, text string) {
	if at < least {
		return
	}
	text = strings.TrimSuffix(text, "\n")
	if wire := host.Current(); wire != nil && wire.Log(names[at], text) == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "[%s] %s\n", names[at], text)
}

// Debug logs at level DEBUG.
func Debug(v ...interface{}) { write(debug, fmt.Sprint(v...)) }

// Debugf logs at level DEBUG.
func Debugf(format string, v ...interface{}) { write(debug, fmt.Sprintf(format, v...)) }

// Info logs at level INFO.
func Info(v ...interface{}) { write(info, fmt.Sprint(v...)) }

// Infof logs at level INFO.
func Infof(format string, v ...interface{}) { write(info, fmt.Sprintf(format, v...)) }

// Warn logs at level WARN.
func Warn(v ...interface{}) { write(warn, fmt.Sprint(v...)) }

// Warnf logs at level WARN.
func Warnf(format string, v ...interface{}) { write(warn, fmt.Sprintf(format, v...)) }

// Error logs at level ERROR.
func Error(v ...interface{}) { write(failure, fmt.Sprint(v...)) }

// Errorf logs at level ERROR.
func Errorf(format string, v ...interface{}) { write(failure, fmt.Sprintf(format, v...)) }

// Fatal logs at level ERROR and ends the process with status 1.
func Fatal(v ...interface{}) {
	write(failure, fmt.Sprint(v...))
	os.Exit(1)
}

// Fatalf logs at level ERROR and ends the process with status 1.
func Fatalf(format string, v ...interface{}) {
	write(failure, fmt.Sprintf(format, v...))
	os.Exit(1)
}
