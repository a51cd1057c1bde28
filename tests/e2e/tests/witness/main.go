// Verifies a cosigned checkpoint with Go's own cryptography, from the definition in c2sp.org/tlog-cosignature: nothing of
// ours is in it, and no library for notes either.
//
// Usage: cosigned CHECKPOINT WITNESS-KEY
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

func fail(why string) {
	fmt.Fprintln(os.Stderr, "oracle:", why)
	os.Exit(1)
}

func main() {
	note, err := os.ReadFile(os.Args[1])
	if err != nil {
		fail(err.Error())
	}
	key := strings.SplitN(os.Args[2], "+", 3)
	material, err := base64.StdEncoding.DecodeString(key[2])
	if err != nil || len(material) != 1+ed25519.PublicKeySize || material[0] != 0x04 {
		fail("no key of a witness")
	}
	hash := sha256.Sum256(append([]byte(key[0]+"\n"), material...))
	if hex.EncodeToString(hash[:4]) != key[1] {
		fail("the key's id is another")
	}
	end := bytes.LastIndex(note, []byte("\n\n"))
	text := note[:end+1]
	for _, line := range strings.Split(string(note[end+2:]), "\n") {
		words := strings.Split(line, " ")
		if len(words) != 3 || words[0] != "—" || words[1] != key[0] {
			continue
		}
		signature, err := base64.StdEncoding.DecodeString(words[2])
		if err != nil || len(signature) != 4+8+ed25519.SignatureSize || !bytes.Equal(signature[:4], hash[:4]) {
			continue
		}
		time := binary.BigEndian.Uint64(signature[4:12])
		message := append([]byte(fmt.Sprintf("cosignature/v1\ntime %d\n", time)), text...)
		if !ed25519.Verify(material[1:], message, signature[12:]) {
			fail("the cosignature is false")
		}
		fmt.Printf("cosigned at %d\n", time)
		return
	}
	fail("not cosigned by " + key[0])
}
