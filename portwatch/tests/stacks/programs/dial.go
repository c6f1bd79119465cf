package main

import (
	"net/http"
	"os"
)

func main() { http.Get("http://127.0.0.1:" + os.Args[1] + "/") }
