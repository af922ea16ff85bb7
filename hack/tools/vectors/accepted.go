package main

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// accepted is a difference that is meant, and why.
type accepted struct {
	name     string
	explains func(q question, ours, theirs answer) bool
}

// acceptedDifferences is the whole list. Whatever it does not explain is a fault.
var acceptedDifferences = []accepted{
	{
		// distribution takes upper case for the sign of a host: Team/app is /v2/app of a host called Team. No registry is called so, and
		// people do write Team/app: they are told what is wrong instead of "no such host" a minute later.
		name: "an upper-case host without a dot or a port is refused",
		explains: func(q question, ours, theirs answer) bool {
			host, _, _ := strings.Cut(q.Text+q.Image, "/")
			return refused(q, ours, theirs) && strings.ToLower(host) != host && !strings.ContainsAny(host, ".:")
		},
	},
	{
		// The grammar sets no limit; DNS does. A name must be bounded to be stored and shown.
		name: "a host of more than 255 characters is refused",
		explains: func(q question, ours, theirs answer) bool {
			host, _, _ := strings.Cut(q.Text+q.Image, "/")
			return refused(q, ours, theirs) && len(host) > 255
		},
	},
	{
		// The kubelet shows a registry called localhost the login of Docker Hub, because its name has no dot.
		name: "an image of localhost does not fall back to the login of Docker Hub",
		explains: func(q question, ours, theirs answer) bool {
			return q.Kind == "logins" && strings.HasPrefix(q.Image, "localhost/") && len(ours.Logins) == 0
		},
	},
	{
		// The kubelet takes the brackets for a set of characters, so that such a login is never used. It is meant for that host alone.
		name: "an IPv6 host without a port matches itself",
		explains: func(q question, ours, theirs answer) bool {
			host, _, _ := strings.Cut(q.Image, "/")
			return q.Kind != "reference" && strings.HasPrefix(host, "[") && strings.HasSuffix(host, "]") &&
				!theirs.Matches && !slices.ContainsFunc(theirs.Logins, func(login [2]string) bool { return !slices.Contains(ours.Logins, login) })
		},
	},
	{
		// The CRI's messages are protobuf, whose strings are UTF-8: the kubelet's pull fails with the first such login. The entry is named
		// in the status of the image cache, and the others are used.
		name: "a login that is no UTF-8 is passed over",
		explains: func(q question, ours, theirs answer) bool {
			// Without these logins both must say the same.
			usable := theirs
			usable.Logins = slices.DeleteFunc(slices.Clone(theirs.Logins), func(login [2]string) bool {
				return !utf8.ValidString(login[0]) || !utf8.ValidString(login[1])
			})
			if len(usable.Logins) == 0 {
				usable.Logins = nil
			}
			return q.Kind == "logins" && len(usable.Logins) < len(theirs.Logins) && equal(q, ours, usable)
		},
	},
}

// refused tells whether we refuse an image that the kubelet takes. No pattern matches such an image.
func refused(q question, ours, theirs answer) bool {
	if q.Kind == "pattern" {
		return ours.OK && theirs.OK && theirs.Matches && !ours.Matches
	}
	return theirs.OK && !ours.OK
}
