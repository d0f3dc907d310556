//go:build !wasip1

package host

import (
	"fmt"
	"os"
	"syscall"
)

// take takes the socket away from standard input.
func take() (*os.File, error) {
	fd, err := given()
	if err != nil {
		return nil, err
	}
	own, err := syscall.Dup(fd)
	if err != nil {
		return nil, fmt.Errorf("the socket of the worker: %w", err)
	}
	syscall.CloseOnExec(own)
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if err := syscall.Dup3(int(null.Fd()), fd, 0); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), "worker"), nil
}
