package paths

const (
	systemConfig = "/Library/Application Support/Atlantic/atlantic.toml"
	systemState  = "/Library/Application Support/Atlantic/state"
)
