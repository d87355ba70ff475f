// gocar is the go-car oracle of the interop tests.
//
//	gocar read FILE              checks every hash; prints "root CID" and "block CID LENGTH" lines
//	gocar write KIND IN OUT      writes the blocks of IN again; KIND: v1, v2-sorted, v2-multihash
//
// For a CARv2 with an index, read also fetches every block through the index.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	carv2 "github.com/ipld/go-car/v2"
	"github.com/ipld/go-car/v2/blockstore"
	"github.com/multiformats/go-multicodec"
)

func main() {
	var err error
	args := os.Args[1:]
	switch {
	case len(args) == 2 && args[0] == "read":
		err = read(args[1])
	case len(args) == 4 && args[0] == "write":
		err = write(args[1], args[2], args[3])
	default:
		err = errors.New("usage: gocar read FILE | gocar write v1|v2-sorted|v2-multihash IN OUT")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gocar:", err)
		os.Exit(1)
	}
}

func read(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	reader, err := carv2.NewBlockReader(file)
	if err != nil {
		return err
	}
	for _, root := range reader.Roots {
		fmt.Println("root", root)
	}
	for {
		block, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		fmt.Println("block", block.Cid(), len(block.RawData()))
	}
	if reader.Version == 2 {
		return readByIndex(path)
	}
	return nil
}

func readByIndex(path string) error {
	store, err := blockstore.OpenReadOnly(path)
	if err != nil {
		return err
	}
	defer store.Close()
	keys, err := store.AllKeysChan(context.Background())
	if err != nil {
		return err
	}
	for key := range keys {
		block, err := store.Get(context.Background(), key)
		if err != nil {
			return fmt.Errorf("%s by the index: %w", key, err)
		}
		// The key lists CIDs as raw; the multihash says whether the bytes are the right ones.
		again, err := key.Prefix().Sum(block.RawData())
		if err != nil {
			return err
		}
		if !again.Equals(key) {
			return fmt.Errorf("%s by the index: other bytes", key)
		}
	}
	return nil
}

func write(kind, in, out string) error {
	options := []carv2.Option{blockstore.AllowDuplicatePuts(true)}
	switch kind {
	case "v1":
		options = append(options, blockstore.WriteAsCarV1(true))
	case "v2-sorted":
		options = append(options, carv2.UseIndexCodec(multicodec.CarIndexSorted))
	case "v2-multihash":
		options = append(options, carv2.UseIndexCodec(multicodec.CarMultihashIndexSorted))
	default:
		return fmt.Errorf("unknown kind %q", kind)
	}
	file, err := os.Open(in)
	if err != nil {
		return err
	}
	defer file.Close()
	reader, err := carv2.NewBlockReader(file)
	if err != nil {
		return err
	}
	store, err := blockstore.OpenReadWrite(out, reader.Roots, options...)
	if err != nil {
		return err
	}
	for {
		block, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := store.Put(context.Background(), block); err != nil {
			return err
		}
	}
	return store.Finalize()
}
