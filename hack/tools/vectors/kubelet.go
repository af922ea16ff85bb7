package main

import (
	"encoding/base64"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/credentialprovider/secrets"
	"k8s.io/kubernetes/pkg/util/parsers"
)

// question is one line for our program; answer is what it says.
type question struct {
	Kind    string   `json:"kind"`
	Text    string   `json:"text"`
	Secrets []secret `json:"secrets"`
	Pattern string   `json:"pattern"`
	Image   string   `json:"image"`
}

type secret struct {
	Type string            `json:"type"`
	Data map[string]string `json:"data"`
}

type answer struct {
	OK          bool        `json:"ok"`
	Repository  string      `json:"repository"`
	Tag         string      `json:"tag"`
	Digest      string      `json:"digest"`
	RuntimeName string      `json:"runtime_name"`
	Logins      [][2]string `json:"logins"`
	Malformed   int         `json:"malformed"`
	PassedOver  []string    `json:"passed_over"`
	Matches     bool        `json:"matches"`
}

func newSecret(old bool, content string) secret {
	kind, key := corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey
	if old {
		kind, key = corev1.SecretTypeDockercfg, corev1.DockerConfigKey
	}
	return secret{Type: string(kind), Data: map[string]string{key: base64.StdEncoding.EncodeToString([]byte(content))}}
}

// kubelet is what the kubelet's own code says.
func kubelet(q question) answer {
	switch q.Kind {
	case "reference":
		return reference(q.Text)
	case "pattern":
		_, err := credentialprovider.ParseSchemelessURL(q.Pattern)
		a := answer{OK: err == nil}
		if repository, _, _, err := parsers.ParseImageName(q.Image); err == nil {
			a.Matches, _ = credentialprovider.URLsMatchStr(q.Pattern, repository)
		}
		return a
	}
	return logins(q)
}

func reference(text string) answer {
	repository, tag, digest, err := parsers.ParseImageName(text)
	if err != nil {
		return answer{}
	}
	// As applyDefaultImageTag of pkg/kubelet/images.
	name := text
	if digest == "" && tag != "" && !strings.HasSuffix(text, ":"+tag) {
		name += ":" + tag
	}
	return answer{OK: true, Repository: repository, Tag: tag, Digest: digest, RuntimeName: name}
}

// logins looks up one secret after the other: the kubelet gives up at the first that is malformed, which we pass over.
func logins(q question) answer {
	var a answer
	var good []corev1.Secret
	for _, s := range q.Secrets {
		made := corev1.Secret{Type: corev1.SecretType(s.Type), Data: map[string][]byte{}}
		for key, value := range s.Data {
			made.Data[key], _ = base64.StdEncoding.DecodeString(value)
		}
		if _, err := secrets.MakeDockerKeyring([]corev1.Secret{made}, nil); err != nil {
			a.Malformed++
			continue
		}
		good = append(good, made)
	}
	repository, _, _, err := parsers.ParseImageName(q.Image)
	if err != nil {
		return a
	}
	a.OK = true
	keyring, err := secrets.MakeDockerKeyring(good, nil)
	if err != nil || keyring == nil {
		return a
	}
	found, _ := keyring.Lookup(repository)
	for _, login := range found {
		a.Logins = append(a.Logins, [2]string{login.Username, login.Password})
	}
	return a
}
