# Sourced by the scripts for their --help: show_help FILE… prints the comments that the files begin with, and ends.

show_help() {
    awk 'FNR == 1 { head = 1 } /^#!/ { next } !/^#/ { head = 0 } head { sub(/^# ?/, ""); print }' "$@"
    exit
}
