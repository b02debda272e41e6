package config

import (
	"io/fs"
	"os"
)

// Windows says who may write by access lists, which the installer sets on the
// directory (%ProgramData%\Atlantic: Administrators and SYSTEM); mode bits
// mean nothing here.

const openNonblock = 0

func checkOwner(string, fs.FileInfo) error      { return nil }
func checkSecretFile(string, fs.FileInfo) error { return nil }
func readableByOthers(fs.FileInfo) bool         { return false }
func keepOwner(*os.File, fs.FileInfo)           {}
func syncDir(string) error                      { return nil } // a rename is durable with NTFS's log
