// Reads a log as the issuer wrote it with the code of Go's checksum database, which knows nothing of ours.
//
// Usage: oracle DIR VERIFIER-KEY RECORD PROOF OLD-CHECKPOINT
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"oracle/note"
	"oracle/tlog"
)

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func open(signed []byte, verifier note.Verifier) tlog.Tree {
	opened := must(note.Open(signed, note.VerifierList(verifier)))
	lines := strings.Split(opened.Text, "\n")
	if lines[0] != verifier.Name() {
		check(fmt.Errorf("origin %q", lines[0]))
	}
	return tlog.Tree{N: must(strconv.ParseInt(lines[1], 10, 64)), Hash: must(tlog.ParseHash(lines[2]))}
}

type tiles string

func (dir tiles) Height() int { return 8 }

func (dir tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (dir tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var all [][]byte
	for _, tile := range wanted {
		path := "tile/" + strings.TrimPrefix(tile.Path(), "tile/8/")
		data, err := os.ReadFile(filepath.Join(string(dir), path))
		if err != nil {
			return nil, err
		}
		all = append(all, data)
	}
	return all, nil
}

func bundles(dir string, size int64) [][]byte {
	var entries [][]byte
	for n := int64(0); n*256 < size; n++ {
		path := fmt.Sprintf("%s/tile/entries/%03d", dir, n)
		if rest := size - n*256; rest < 256 {
			path += fmt.Sprintf(".p/%d", rest)
		}
		data := must(os.ReadFile(path))
		for len(data) > 0 {
			length := int(binary.BigEndian.Uint16(data))
			entries = append(entries, data[2:2+length])
			data = data[2+length:]
		}
	}
	return entries
}

func main() {
	dir := os.Args[1]
	verifier := must(note.NewVerifier(os.Args[2]))
	tree := open(must(os.ReadFile(filepath.Join(dir, "checkpoint"))), verifier)
	reader := tlog.TileHashReader(tree, tiles(dir))
	if root := must(tlog.TreeHash(tree.N, reader)); root != tree.Hash {
		check(fmt.Errorf("root %v, signed %v", root, tree.Hash))
	}
	entries := bundles(dir, tree.N)
	if int64(len(entries)) != tree.N {
		check(fmt.Errorf("%d entries, signed %d", len(entries), tree.N))
	}
	for i, entry := range entries {
		hashes := must(reader.ReadHashes([]int64{tlog.StoredHashIndex(0, int64(i))}))
		if hashes[0] != tlog.RecordHash(entry) {
			check(fmt.Errorf("entry %d is not what its tile says", i))
		}
	}

	old := open(must(os.ReadFile(os.Args[5])), verifier)
	check(tlog.CheckTree(must(tlog.ProveTree(tree.N, old.N, reader)), tree.N, tree.Hash, old.N, old.Hash))

	head, signed, _ := strings.Cut(string(must(os.ReadFile(os.Args[4]))), "\n\n")
	lines := strings.Split(head, "\n")
	if lines[0] != "c2sp.org/tlog-proof@v1" {
		check(fmt.Errorf("proof begins with %q", lines[0]))
	}
	index := must(strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64))
	var proof tlog.RecordProof
	for _, line := range lines[2:] {
		proof = append(proof, must(tlog.ParseHash(line)))
	}
	at := open([]byte(signed), verifier)
	check(tlog.CheckRecord(proof, at.N, at.Hash, index, tlog.RecordHash(must(os.ReadFile(os.Args[3])))))
	fmt.Printf("verified %d entries\n", tree.N)
}
