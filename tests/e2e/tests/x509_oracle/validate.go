// Path validation by Go's crypto/x509: usage `go run validate.go DIRECTORY`.
package main

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
)

func load(dir, name string) (certificates []*x509.Certificate) {
	rest, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		panic(err)
	}
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			panic(fmt.Sprintf("%s: %v", name, err))
		}
		certificates = append(certificates, certificate)
	}
}

func pool(certificates []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range certificates {
		p.AddCert(c)
	}
	return p
}

func main() {
	dir := os.Args[1]
	tiers := []string{"foundation", "enterprise", "advanced"}
	for _, demanded := range tiers {
		for _, leaf := range tiers {
			options := x509.VerifyOptions{
				Roots:         pool(load(dir, "roots-"+demanded+".pem")),
				Intermediates: pool(load(dir, "issuing-"+leaf+".pem")),
				KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			}
			_, err := load(dir, "leaf-"+leaf+".pem")[0].Verify(options)
			if err == nil {
				options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
				_, err = load(dir, "leaf-"+leaf+".pem")[0].Verify(options)
			}
			if err != nil {
				fmt.Println("roots", demanded, leaf, "refuse", err)
			} else {
				fmt.Println("roots", demanded, leaf, "accept")
			}
		}
	}
}
