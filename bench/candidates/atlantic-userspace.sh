stack=userspace
. "$(dirname "${BASH_SOURCE[0]}")/atlantic.sh"
