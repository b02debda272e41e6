package main

const stateDir = "/var/lib/atlantic"

func defaultConfig() string { return "/etc/atlantic/atlantic.toml" }
