package main

const stateDir = "/Library/Application Support/Atlantic/state"

func defaultConfig() string { return "/Library/Application Support/Atlantic/atlantic.toml" }
