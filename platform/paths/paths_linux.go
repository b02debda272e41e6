package paths

const (
	systemConfig = "/etc/atlantic/atlantic.toml"
	systemState  = "/var/lib/atlantic"
)
