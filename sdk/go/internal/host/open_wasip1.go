package host

import (
	"fmt"
	"os"
	"syscall"
)

// take opens the descriptor that the WASM runtime gave. It does not block, so that other goroutines run
// while a message is awaited.
func take() (*os.File, error) {
	fd, err := given()
	if err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("the descriptor of the worker: %w", err)
	}
	return os.NewFile(uintptr(fd), "worker"), nil
}
